"""What several test modules need. Import from the modules of this package."""

from support.clients import is_closed as is_closed
from support.faults import needs_strace as needs_strace
from support.faults import stalled_sync as stalled_sync
from support.faults import strace as strace
from support.logs import REPORT as REPORT
from support.logs import GrowingLog as GrowingLog
from support.logs import lines as lines
from support.processes import REACTORS as REACTORS
from support.processes import CommandProcess as CommandProcess
from support.processes import ServerProcess as ServerProcess
from support.processes import assert_one_line_error as assert_one_line_error
from support.processes import failure as failure
from support.processes import run_command as run_command
from support.waiting import DEADLINE_S as DEADLINE_S
from support.waiting import wait_until as wait_until
