"""Formats that other tools read and write.

Each module knows one: `chakra` (execution traces), `chrome_trace` (timelines), `nccl_xml` and `topo_matrix` (what a
host is made of, as a `host_fragment`), `nccl_tests_log` (measured collectives).
"""


class FormatError(ValueError):
    """A file that does not hold what it should; the message names the file and the line or node."""
