"""torch's launcher, whose end is told in a line where it isn't its own fault."""

import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException:
        sys.exit(1)  # whoever started it has ended it
    except ChildFailedError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway
        _, failure = error.get_first_failure()
        sys.exit(f"a process of the training on this machine has ended with exit code {failure.exitcode}")
