"""What was gained and lost: as JSON for machines, as tables for people."""

from trp_onnx.report.document import Report, Size
from trp_onnx.report.tables import bench_tables, inspection_table, latency_tables, show_report

__all__ = ["Report", "Size", "bench_tables", "inspection_table", "latency_tables", "show_report"]
