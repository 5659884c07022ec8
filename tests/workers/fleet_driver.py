"""The driver of trials on several hosts, with `fleet_launcher` in place of the launcher."""

from __future__ import annotations

import sys

from workers.fleet import driver

if __name__ == "__main__":
    driver.main(sys.argv[1:], module="tests.workers.fleet_launcher")
