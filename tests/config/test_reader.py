"""From files to a Config, and every mistake at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trustme

from fastgw.config import CalendarWindow, Config, load
from fastgw.config.tables import LISTED_TABLES, SINGLE_TABLES, spellings
from fastgw.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

BASE = """\
[[keys]]
name = "alice"
key = "sk-alice-abc123def456"
metadata = { user_id = "alice", tier = "premium" }

[[budgets]]
name = "daily"
per = ["user_id"]
limit = 100

[[upstreams]]
name = "openai"
base_url = "https://api.openai.com/v1"

[[routes]]
path_prefix = "/openai"
upstream = "openai"
"""


def put(folder: Path, text: str, name: str = "config.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def good(folder: Path, text: str, **environ: str) -> Config:
    return load([put(folder, text)], environ)


def problems(folder: Path, text: str, **environ: str) -> list[str]:
    """The problems of a text, without the folder's name."""
    path = put(folder, text)
    with pytest.raises(ConfigError) as caught:
        load([path], environ)
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


MISTAKES = [
    (
        "unknown setting",
        "[server]\nmax_conections = 5\n",
        'config.toml:2: [server] max_conections: unknown setting; did you mean "max_connections"?',
    ),
    (
        "wrong type",
        '[metrics]\nmax_series = "100"\n',
        "config.toml:2: [metrics] max_series: must be a whole number, not text; "
        "write 100 without quotes",
    ),
    (
        "unknown choice",
        '[auth]\nmode = "srtict"\n',
        'config.toml:2: [auth] mode: unknown choice "srtict"; did you mean "strict"?',
    ),
    (
        "out of range",
        '[admin]\nlisten = "127.0.0.1:90900"\n',
        'config.toml:2: [admin] listen: "127.0.0.1:90900": the port must be 0 to 65535, '
        "after the last colon",
    ),
    (
        "bad address",
        '[store]\nurl = "redis+sentinel://h:26379"\n',
        "config.toml:2: [store] url: not a Redis address; "
        'write "redis+sentinel://host:26379,host:26379/service"',
    ),
    (
        "unset variable",
        '[[upstreams]]\nname = "b"\nbase_url = "http://h"\napi_key = "${NOT_SET}"\n',
        "config.toml:4: [[upstreams]] api_key: environment variable NOT_SET is not set; "
        "set it, or write ${NOT_SET:-default}",
    ),
    (
        "unknown upstream",
        '[[routes]]\npath_prefix = "/x"\nupstream = "opnai"\n',
        'config.toml:3: [[routes]] upstream: no upstream is named "opnai"; did you mean "openai"?',
    ),
    (
        "unknown metadata",
        '[[budgets]]\nname = "m"\nlimit = 1\nmatch = { teir = "premium" }\n',
        'config.toml:4: [[budgets]] match.teir: no key has the metadata field "teir"; '
        'did you mean "tier"?',
    ),
    (
        "missing",
        '[[budgets]]\nname = "n"\n',
        "config.toml:1: [[budgets]] limit: missing; add it: amount of the unit in a window; "
        "0 refuses all",
    ),
    (
        "short secret",
        '[[keys]]\nname = "carol"\nkey = "hunter2"\n',
        "config.toml:3: [[keys]] key: a secret has 8 characters or more; "
        "make one with: openssl rand -hex 24",
    ),
]


@pytest.mark.parametrize(("name", "text", "line"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_clear_line(tmp_path: Path, name: str, text: str, line: str) -> None:
    assert problems(tmp_path, text + BASE) == [line]


def test_ten_mistakes_come_back_in_one_run(tmp_path: Path) -> None:
    text = BASE
    expected = []
    for _, mistake, line in MISTAKES:
        above = text.count("\n")
        _, number, rest = line.split(":", 2)
        expected.append(f"config.toml:{int(number) + above}:{rest}")
        text += mistake
    assert problems(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[serve]\n", "config.toml:1: [serve]: unknown table; did you mean [server]?"),
        ("[[key]]\n", "config.toml:1: [[key]]: unknown table; did you mean [[keys]]?"),
        ("[[admin]]\n", "config.toml:1: [admin]: is one table; write [admin]"),
        ("max_head = 1\n", "config.toml:1: max_head: stands outside of any table; put it under [s"),
        ("[server]\nnamespace = 'x'\n", "unknown setting; it belongs under [metrics]"),
        ("[server]\nworkers = 0\n", "0 is out of range; write 1 to 1024"),
        ("[server]\nworkers = 'many'\n", '"many" is not a number of workers; write 4, or "auto"'),
        ("[server]\nworkers = '4'\n", '"4" is not a number of workers'),
        ("[server]\nworkers = true\n", "must be a whole number, not true or false"),
        (
            "[server]\nworkers = 'auto'\n[store]\nurl = 'memory:'\n",
            "[server] workers: each worker would count for itself in memory:",
        ),
        ("[server]\nlisten = []\n", "[server] listen: an empty list"),
        ("[server]\nlisten = 8080\n", "[server] listen: must be a list of texts, not a number"),
        ("[server]\nidle_timeout = 0\n", "0 is out of range; write more than 0 to"),
        ("[server]\nidle_timeout = inf\n", "inf is out of range"),
        ("[server]\nmax_head = -1\n", "-1 is out of range; write 1 byte or more"),
        ("[server]\ntls_cert = 'config.toml'\n", "tls_cert: the file is not PEM"),
        ("[server]\ntls_key = 'away.pem'\n", "tls_key: the file cannot be read: no such file"),
        ("[access_log]\npath = false\n", "must be text in quotes, not true or false"),
        ("[[budgets]]\nname='b'\nlimit=-1\n", "limit: -1 is out of range; write 0 to"),
        ("[[budgets]]\nname='b'\nlimit=1\nwarn_at=80\n", "80 is out of range; write 0 to 1"),
        ("[[budgets]]\nname='b'\nlimit=-0.5\nunit='usd'\n", "-0.5: dollars below zero; write 0 or"),
        (
            "[[budgets]]\nname='b'\nlimit='5 $'\nunit='usd'\n",
            "5 $: not an amount in dollars; write",
        ),
        (
            "[[budgets]]\nname='b'\nlimit='0.0000000001'\nunit='usd'\n",
            "finer than a nano-USD; write 9 decimals at most",
        ),
        (
            "[[budgets]]\nname='b'\nlimit=1e9\nunit='usd'\n",
            "out of range; write $9007199.254740991",
        ),
        ("[[budgets]]\nname='b'\nlimit=1.5\n", "must be a whole number, not one with a point"),
        ("[[prices]]\nmodel='a*b'\ninput=1\noutput=1\n", "with one * first or last"),
        ("[[prices]]\nmodel='a'\ninput=1\n", "[[prices]] output: missing; add it"),
        (
            "[[prices]]\nmodel='a'\ninput=1\noutput=1\nupstream='x'\n",
            '[[prices]] upstream: no upstream is named "x"',
        ),
        ("[[prices]]\nmodel='a'\ninput=1\noutput=1\ntiers=[{input=2}]\n", "has no `above`"),
        (
            "[[prices]]\nmodel='a'\ninput=1\noutput=1\ntiers=[{above=1,inptu=2}]\n",
            'unknown setting; did you mean "input"?',
        ),
        ("[pricing]\ncatalogs='none.json'\n", '"none.json" cannot be read: no such file'),
        (
            "[[budgets]]\nname='b'\nlimit=1\nunit='requests'\ncutoff='mid_stream'\n",
            "[[budgets]] cutoff: no stream grows in requests; leave it out, or count",
        ),
        ("[[budgets]]\nname='b'\nlimit=1\nwindow='dya'\n", 'unknown choice "dya"; did you mean'),
        (
            "[[budgets]]\nname='b'\nlimit=1\nwindow={calendar='hour'}\n",
            'window.calendar: unknown choice "hour"',
        ),
        (
            "[[budgets]]\nname='b'\nlimit=1\nwindow={calendar='day', timezone='Europe/Berln'}\n",
            'unknown time zone "Europe/Berln"; did you mean "Europe/Berlin"?',
        ),
        ("[[budgets]]\nname='b'\nlimit=1\nper=['user_di']\n", 'did you mean "user_id"?'),
        ("[[budgets]]\nname='b'\nlimit=1\nper=['a b']\n", 'per: "a b": not an expression'),
        ("[metrics]\nlabels = { le = 'user_id' }\n", "labels.le: a label that metrics already"),
        (
            "[metrics]\nlabels = { x = 'apiKey.team' }\n",
            'labels.x: no key has the metadata field "',
        ),
        ("[[routes]]\npath_prefix='/openai'\nupstream='openai'\n", "is already used at config.to"),
    ],
)
def test_problems(tmp_path: Path, text: str, part: str) -> None:
    found = problems(tmp_path, text + BASE)
    assert len(found) == 1, found
    assert part in found[0]


def test_values_in_base_units(tmp_path: Path) -> None:
    text = """\
    [server]
    listen = "[::]:8080"
    max_request_body = "2MiB"
    idle_timeout = "1500ms"
    drain_timeout = 0
    [[budgets]]
    name = "monthly"
    limit = 1_000_000
    window = { calendar = "month", timezone = "Europe/Berlin" }
    [[keys]]
    name = "dated"
    key_hash = "sha256:%s"
    not_before = 2026-01-01T00:00:00+01:00
    expires_at = "2027-01-01T00:00:00Z"
    metadata = { level = 3, beta = true }
    """ % ("AB" * 32)
    config = good(tmp_path, text + BASE)
    assert config.server.listen == ("[::]:8080",)
    assert config.server.max_request_body == 2 * 1024**2
    assert (config.server.idle_timeout, config.server.drain_timeout) == (1.5, 0.0)
    assert config.budgets[0].window == CalendarWindow("month", "Europe/Berlin")
    key = config.keys[0]
    assert key.digest == b"\xab" * 32
    assert (key.not_before, key.expires_at) == (1767222000.0, 1798761600.0)
    assert key.metadata == {"level": "3", "beta": "true"}
    assert config.keys[1].digest == hashlib.sha256(b"sk-alice-abc123def456").digest()


def test_files_are_merged_in_order(tmp_path: Path) -> None:
    put(tmp_path, '[server]\nmax_head = 5000\n[[keys]]\nname="z"\nkey="12345678"\n', "d/20.toml")
    put(tmp_path, "[server]\nmax_request_body = 7000\n" + BASE, "d/10.toml")
    put(tmp_path, "not toml at all", "d/notes.txt")
    config = load([tmp_path / "d"], {})
    assert (config.server.max_head, config.server.max_request_body) == (5000, 7000)
    assert [key.name for key in config.keys] == ["alice", "z"]


def test_what_two_files_both_say(tmp_path: Path) -> None:
    one = put(tmp_path, "[server]\nmax_head = 5000\n" + BASE, "one.toml")
    two = put(tmp_path, "[server]\nmax_head = 5000\n" + BASE, "two.toml")
    with pytest.raises(ConfigError) as caught:
        load([one, two], {})
    found = [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]
    assert found == [
        "two.toml:2: [server] max_head: is already set at one.toml:2; keep one of the two",
        'two.toml:4: [[keys]] name: "alice" is already used at one.toml:4; give each its own',
        'two.toml:5: [[keys]] key: the same secret as that of key "alice" at one.toml:5; '
        "give each key its own",
        'two.toml:9: [[budgets]] name: "daily" is already used at one.toml:9; give each its own',
        'two.toml:14: [[upstreams]] name: "openai" is already used at one.toml:14; '
        "give each its own",
        'two.toml:18: [[routes]] path_prefix: "/openai" is already used at one.toml:18; '
        "give each its own",
    ]


def test_a_file_that_is_not_toml_hides_nothing_and_invents_nothing(tmp_path: Path) -> None:
    broken = put(tmp_path, "[[upstreams]]\nname = \n", "a.toml")
    other = put(tmp_path, '[server]\nx = 1\n[[routes]]\npath_prefix="/a"\nupstream="u"\n', "b.toml")
    with pytest.raises(ConfigError) as caught:
        load([broken, other], {})
    first, second = caught.value.problems
    assert first.startswith(f"{broken}:2: not TOML at column 8: Invalid value")
    assert second.startswith(f"{other}:2: [server] x: unknown setting")


def test_one_table_where_many_may_stand(tmp_path: Path) -> None:
    text = BASE.replace("[[keys]]", "[keys]")
    assert problems(tmp_path, text)[0] == (
        "config.toml:1: [keys]: may stand many times; write [[keys]] above each entry"
    )


def test_nothing_to_serve(tmp_path: Path) -> None:
    found = problems(tmp_path, "# empty\n")
    assert [line.split(";")[0] for line in found] == [
        "config.toml:1: [[upstreams]]: nothing to serve: there are no [[upstreams]]",
        "config.toml:1: [[routes]]: nothing to serve: there are no [[routes]]",
    ]
    with pytest.raises(ConfigError, match="--config"):
        load([], {})


def test_variables_everywhere(tmp_path: Path) -> None:
    text = """\
    [server]
    max_connections = "${CONNECTIONS}"
    idle_timeout = "${IDLE:-3}"
    [metrics]
    namespace = "${EMPTY:-agent}gw"
    label_buckets = "${FULL}"
    [[keys]]
    name = "v"
    key = "pa$$word-$x-${TAIL}"
    allowed_models = ["${MODEL}*"]
    """
    environ = {"CONNECTIONS": "77", "EMPTY": "", "FULL": "true", "TAIL": "1", "MODEL": "gpt"}
    config = good(tmp_path, text + BASE, **environ)
    assert config.server.max_connections == 77
    assert config.server.idle_timeout == 3.0
    assert config.metrics.namespace == "agentgw"
    assert config.metrics.label_buckets is True
    assert config.keys[0].digest == hashlib.sha256(b"pa$word-$x-1").digest()
    assert config.keys[0].allowed_models == ("gpt*",)


def test_digest_follows_the_text(tmp_path: Path) -> None:
    one = good(tmp_path, BASE).digest
    assert one == good(tmp_path, BASE).digest
    assert one != good(tmp_path, BASE + "# more\n").digest
    assert len(one) == 64


SECRET = "zq-9f8e7d6c5b4a"


@pytest.mark.parametrize(
    "text",
    [
        '[[keys]]\nname="k"\nkey="S"\nkey_hash="S"\n',
        '[[keys]]\nname="k"\nkey_hash="S"\n',
        '[[keys]]\nname="k"\nkey="S S"\n',
        '[[keys]]\nname="k"\nkey=["S"]\n',
        '[[keys]]\nname="k"\nkey="S"\n[[keys]]\nname="l"\nkey="S"\n',
        '[[keys]]\nname="k"\nkey="${V} "\n',
        '[[keys]]\nname="k"\nkey="S-long-enough"\nprevious_key_hash="S"\n',
        '[admin]\ntoken="S\\n"\n',
        '[admin]\ntoken={ x = "S" }\n',
        '[store]\nurl="redis+sentinel://u:S@h"\n',
        '[store]\nurl="redis://u:S@"\n',
        '[store]\nurl="S://x"\n',
        '[[upstreams]]\nname="u"\nbase_url="https://u:S@h/x"\napi_key="a S"\n',
        '[[upstreams]]\nname="u"\nbase_url="https://h"\nheaders={ x-key = "S\\n" }\n',
        '[server]\nlisten="${V}"\nmax_head="${V}"\nidle_timeout="${V}"\nmax_connections="${V}"\n',
        '[auth]\nmode="${V}"\nlocations=["${V}", "${V}:x"]\n',
        '[[budgets]]\nname="${V}/"\nlimit="${V}"\nwindow="${V}"\nper=["${V}", "request.${V}"]\n',
        '[[budgets]]\nname="b"\nlimit=1\nshadow="${V}"\nmatch={ t="*${V}*" }\n'
        'window={ calendar="${V}", timezone="${V}" }\n',
        '[[routes]]\npath_prefix="${V}"\nupstream="${V}"\nhost="//${V}"\n',
        '[[routes]]\npath_prefix="/${V}/"\nupstream="${V}"\n',
        '[[routes]]\npath_prefix="/${V}"\nupstream="openai"\n'
        '[[routes]]\npath_prefix="/${V}"\nupstream="openai"\n',
        '[metrics]\nnamespace="${V}"\nlabels={ x="apiKey[${V}]", y="${W}" }\n',
        '[[keys]]\nname="k"\nkey_file="${V}"\nallowed_ips=["${V}"]\nexpires_at="${V}"\n',
    ],
)
def test_no_problem_shows_a_secret(tmp_path: Path, text: str) -> None:
    found = problems(tmp_path, text.replace("S", SECRET) + BASE, V=SECRET, W="zq_9f8e7d6c5b4a")
    assert found
    for shown in ("9f8e", "5b4a"):
        assert shown not in "\n".join(found)


def test_repr_shows_no_secret(tmp_path: Path) -> None:
    text = f"""\
    [admin]
    token = "{SECRET}"
    [store]
    url = "redis://u:{SECRET}@h/0"
    [[keys]]
    name = "k"
    key = "{SECRET}"
    [[upstreams]]
    name = "other"
    base_url = "https://h"
    api_key = "{SECRET}"
    headers = {{ x-key = "{SECRET}" }}
    """
    config = good(tmp_path, text + BASE)
    assert config.admin.token == config.upstreams[0].api_key == SECRET
    assert SECRET not in repr(config)
    assert repr(hashlib.sha256(SECRET.encode()).digest()) not in repr(config)


def test_prices_may_come_from_the_environment(tmp_path: Path) -> None:
    text = """
    [[prices]]
    model = "m"
    input = "${INPUT}"
    output = 2
    tiers = [{ above = 1000, input = "${LONG:-3}" }]
    """
    price = good(tmp_path, text + BASE, INPUT="0.5").prices[0]
    assert (price.input, price.tiers[0].input) == (500_000_000, 3_000_000_000)
    assert "[[prices]] tiers.input: environment variable LONG is not set" in "\n".join(
        problems(tmp_path, text.replace(":-3", "") + BASE, INPUT="0.5")
    )


def test_pem_files_are_relative_to_the_file(tmp_path: Path) -> None:
    put(tmp_path, trustme.CA().cert_pem.bytes().decode(), "conf/ca.pem")
    text = BASE.replace('v1"\n', 'v1"\nca_file = "ca.pem"\n')
    path = put(tmp_path, text, "conf/config.toml")
    assert load([path], {}).upstreams[0].ca_file == str(tmp_path / "conf/ca.pem")


def test_authorities_must_be_readable(tmp_path: Path) -> None:
    """Found by `fastgw check`, where it stands, and not by a start."""
    put(tmp_path, "-----BEGIN CERTIFICATE-----\nnonsense\n", "ca.pem")
    text = BASE.replace('v1"\n', 'v1"\nca_file = "ca.pem"\n')
    (line,) = problems(tmp_path, text)
    assert "[[upstreams]] ca_file: no certificate in it can be read" in line


FROM_FILES = BASE.replace('v1"\n', 'v1"\napi_key_file = "${FOLDER:-.}/openai"\n')
ADMIN_FILE = '[admin]\ntoken_file = "s/admin"\n'


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_our_credentials_come_from_files_too(tmp_path: Path, end: str) -> None:
    """Relative to the file that names them; each time anew."""
    put(tmp_path, SECRET + end, "conf/openai")
    put(tmp_path, SECRET + "2" + end, "conf/s/admin").chmod(0o644)
    path = put(tmp_path, ADMIN_FILE + FROM_FILES, "conf/config.toml")
    config = load([path], {})
    assert (config.upstreams[0].api_key, config.admin.token) == (SECRET, SECRET + "2")
    assert SECRET not in repr(config)
    put(tmp_path, "sk-renewed" + end, "elsewhere/openai")
    renewed = load([path], {"FOLDER": str(tmp_path / "elsewhere")})
    assert renewed.upstreams[0].api_key == "sk-renewed"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "the file cannot be read: no such file or directory; check the path"),
        ("", "the file is empty"),
        ("\n", "the file is empty"),
        (f"{SECRET}\n{SECRET}\n", "a line end or another character that no header can carry"),
        (f" {SECRET}", "holds a space"),
        (f"{SECRET}é", "no header can carry"),
    ],
)
def test_a_file_without_a_sound_credential(tmp_path: Path, content: str | None, part: str) -> None:
    if content is not None:
        put(tmp_path, content, "openai")
        put(tmp_path, content, "s/admin")
    admin, upstream = problems(tmp_path, ADMIN_FILE + FROM_FILES)
    assert admin.startswith("config.toml:2: [admin] token_file: ")
    assert upstream.startswith("config.toml:16: [[upstreams]] api_key_file: ")
    for line in (admin, upstream):
        assert part in line
        assert SECRET not in line


def test_a_credential_stands_in_one_place(tmp_path: Path) -> None:
    text = FROM_FILES.replace("api_key_file", f'api_key = "{SECRET}"\napi_key_file')
    found = (
        "config.toml:15: [[upstreams]] api_key_file: here are api_key and api_key_file; keep one"
    )
    assert problems(tmp_path, text) == [found]


STRANGE = [
    "0", "-1", "true", "1e400", "nan", "0x" + "f" * 5000, '""', '" "', '"\\u0000"', '"\\n"',
    '"${"', '"${UNSET}"', '"x" # "', "[]", "[[]]", '["", 1, {}]', "{}", '{ "" = "" }',
    '{ a = [1], b = { c = 1 } }', "1979-05-27", "07:32:00", "1979-05-27T07:32:00",
    "9999-12-31T23:59:59-23:59", '"..//%2e"', '"://[::1"', '"https://[::1"', '"*"', '"9" ',
    '"' + "9" * 400 + 'GiB"',
]  # fmt: skip


@pytest.mark.parametrize("table", [*SINGLE_TABLES, *LISTED_TABLES])
def test_no_value_breaks_the_reader(tmp_path: Path, table: str) -> None:
    """Whatever a setting holds, the answer is a Config or problems of one line each."""
    listed = table in LISTED_TABLES
    for setting in spellings((SINGLE_TABLES | LISTED_TABLES)[table]):
        for value in STRANGE:
            header = f"[[{table}]]" if listed else f"[{table}]"
            path = put(tmp_path, f"{header}\n{setting} = {value}\n{BASE}")
            try:
                load([path], {})
            except ConfigError as error:
                for line in error.problems:
                    assert line.startswith(f"{path}:"), (setting, value, line)
                    assert line.isprintable(), (setting, value, line)
