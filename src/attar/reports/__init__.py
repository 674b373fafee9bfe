"""Pages and tables that people read, made from result files alone."""

from attar.reports.comparison import comparison_table, show
from attar.reports.page import write_page
from attar.reports.results import (
    PROTOCOLS,
    Mode,
    Result,
    Role,
    caution,
    markdown_table,
    protocol_of,
    read_results,
    verdict,
    write_result,
)

__all__ = [
    "PROTOCOLS",
    "Mode",
    "Result",
    "Role",
    "caution",
    "comparison_table",
    "markdown_table",
    "protocol_of",
    "read_results",
    "show",
    "verdict",
    "write_page",
    "write_result",
]
