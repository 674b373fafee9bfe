"""A file system behind a URL, for tests that need one."""

import fsspec
import pytest


@pytest.fixture
def memory():
    """An empty file system behind memory://"""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
