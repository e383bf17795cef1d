"""The `tailrace` command in a process in which things go wrong; see `fault_points`."""

import sys

from fault_points import Injection
from faulty_process import break_client, break_server, prepare

if __name__ == "__main__":
    injection = Injection.from_environment()
    prepare(injection)
    (break_server if sys.argv[1] == "serve" else break_client)(injection)

    from tailrace.__main__ import main

    main()
