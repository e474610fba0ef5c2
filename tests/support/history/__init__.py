"""What the processes of a test did, as lines of JSON, and what must hold over them (I1 to I20 of the checks).

    recorder = Recorder(path, "worker-1")          in every process
    report = check(read(directory), Expectations(...))

A client's timeout is *unknown*, never a failure: whatever may have happened is allowed, whatever cannot have is not.
"""

from tests.support.history.checker import check
from tests.support.history.coverage import Expectations
from tests.support.history.lines import Line, Recorder, digest, read, read_file
from tests.support.history.report import Figures, Report, Violation

__all__ = ["Expectations", "Figures", "Line", "Recorder", "Report", "Violation", "check", "digest", "read", "read_file"]
