"""Pages and tables that people read, made from result files alone."""

from attar.reports.page import write_page
from attar.reports.results import Result, Role, caution, markdown_table, read_results, verdict, write_result

__all__ = ["Result", "Role", "caution", "markdown_table", "read_results", "verdict", "write_page", "write_result"]
