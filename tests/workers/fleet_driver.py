"""The driver of a fleet's trials with `fleet_launcher` in place of the launcher."""

from __future__ import annotations

import sys

from workers import fleet

if __name__ == "__main__":
    fleet.main(sys.argv[1:], module="tests.workers.fleet_launcher")
