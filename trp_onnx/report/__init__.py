"""What was gained and lost: as JSON for machines, as tables and as a page for people."""

from trp_onnx.report.alarms import alarms
from trp_onnx.report.document import Report, Size
from trp_onnx.report.edge import export_tables, quantized_tables, verified_tables
from trp_onnx.report.page import check_page, render_page
from trp_onnx.report.spectra import spectra_of
from trp_onnx.report.tables import bench_tables, inspection_tables, latency_tables, report_tables

__all__ = [
    "Report",
    "Size",
    "alarms",
    "bench_tables",
    "check_page",
    "export_tables",
    "inspection_tables",
    "latency_tables",
    "quantized_tables",
    "render_page",
    "report_tables",
    "spectra_of",
    "verified_tables",
]
