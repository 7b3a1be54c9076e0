"""`python -m fastgw`."""

from fastgw.cli import main

raise SystemExit(main())
