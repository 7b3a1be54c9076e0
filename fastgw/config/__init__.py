"""The configuration: from TOML files and the environment to one frozen, checked `Config`.

    tables       what can be set: one dataclass per table, one field per setting
    source       files and folders -> parsed text (toml), with the line of a setting (locate)
    plain_keys   [[keys]] in which all is well -> keys, of which there may be 100,000
    values       one TOML value -> one value in base units, by the kind of its setting
    formats      what a setting's text must look like (addresses, URLs, patterns, labels ...)
    expression   what budgets and metric labels refer to
    consistency  what must hold between settings
    reader       the whole way; `load`
    describe     what a configuration does, in words; docs/settings.md

Every step reports what is wrong to one list (problems) and goes on, so that one run shows all.
"""

from fastgw.config.expression import Expression, parse_expression
from fastgw.config.reader import load
from fastgw.config.tables import (
    AccessLog,
    Admin,
    Auth,
    Budget,
    CalendarWindow,
    Config,
    Key,
    Metrics,
    Route,
    Server,
    Store,
    Upstream,
)

__all__ = [
    "AccessLog",
    "Admin",
    "Auth",
    "Budget",
    "CalendarWindow",
    "Config",
    "Expression",
    "Key",
    "Metrics",
    "Route",
    "Server",
    "Store",
    "Upstream",
    "load",
    "parse_expression",
]
