"""What was gained and lost: as JSON for machines, as tables for people."""

from trp_onnx.report.document import Report, Size
from trp_onnx.report.tables import inspection_table, show_report

__all__ = ["Report", "Size", "inspection_table", "show_report"]
