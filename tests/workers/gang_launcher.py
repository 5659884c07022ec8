"""The launcher with the tiny training of `gang_rank` in place of a trial's."""

from __future__ import annotations

import sys

from workers.gang import launcher

if __name__ == "__main__":
    launcher.main(sys.argv[1:], module="tests.workers.gang_rank")
