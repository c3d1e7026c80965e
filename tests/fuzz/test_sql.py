"""`selftrain sql` with any text: an answer or one sentence with a documented code, in bounded time and memory."""

import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.flows.cli.main import main
from tests.made_run import make_run

HOSTILE = [
    "select * from range(100000000000) a, range(100000000000) b",
    "with recursive t(n) as (select 1 union all select n + 1 from t) select count(*) from t",
    "select repeat('x', 200000000) from range(1000)",
    "select range(1000000000)",
    "select list(range) from range(1000000000)",
    "select string_agg(range::varchar, '') from range(10000000000)",
    "select " + "(" * 5000 + "1" + ")" * 5000,
    "select " + "-" * 1001 + "1",
    "select " + " + ".join(["1"] * 20000),
    "select * from manifest " + "cross join manifest " * 200,
    "select getenv('HOME')",
    "select * from duckdb_settings()",
    "select * from read_text('/etc/passwd')",
    "select * from '/proc/kmsg'",
    "select * from glob('/**')",
    "select current_setting('temp_directory')",
    "select '\\x00'::blob, 'infinity'::timestamp, '-infinity'::date, 'nan'::float, 'inf'::double",
    "select [[[[1]]]], {'a': {'b': [1]}}, map {'a': [1]}, interval '1 month', 1::bit, uuid()",
    "select 170141183460469231731687303715884105727::hugeint, 1e400::varchar, '1'::decimal(38, 37)",
    "select '\ud800'",
    "select 1\x00",
    "select 1;",
    ";;;",
    "--",
    "/*",
    "select 'a",
    "select $1",
    "select ?",
    "prepare p as select 1",
    "execute p",
    "begin",
    "call pragma_version()",
    "load json",
    "summarize manifest",
    "pivot manifest on split using count(*)",
    "describe manifest",
    "explain analyze select 1",
    "select error('\x1b[2J\u202egone')",
    'select sample_id as "\x1b[31m\u202e" from manifest',
    "select 1 as a, 2 as a, 3 as a_1",
    "",
]
VOCABULARY = (
    "select from where group_by order limit union_all with as join using over manifest predictions selection rounds "
    "sample_id label class probs confidence truth ( ) * , ' \" ; -- 1 -1 1e308 null count(*) [ ] { } :: = ? copy to "
    "attach set pragma read_csv('/etc/passwd') interval varchar blob unnest(probs)"
)
WORDS = VOCABULARY.split(" ")
OUTPUTS = ([], ["--csv", "/dev/null"], ["--json", "/dev/null"])
queries = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(lambda words: "select " + " ".join(words)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run of one round."""
    workspace = tmp_path_factory.mktemp("made")
    make_run(workspace)
    return workspace


def check(workspace: Path, query: str, output: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Asks, and looks at the code and the sentence."""
    before = sorted(path for path in workspace.rglob("*") if "cache" not in path.parts)
    code = main(["--workspace", str(workspace), "sql", "--timeout", "1", *output, "--", "last", query])
    shown = capsys.readouterr()
    assert code in (0, 2, 3), query
    assert (code != 0) == ("selftrain: " in shown.err)
    assert "unexpected" not in shown.err
    assert not set("\x1b\u202e") & set(shown.out + shown.err)
    assert sorted(path for path in workspace.rglob("*") if "cache" not in path.parts) == before


@pytest.mark.parametrize("output", OUTPUTS, ids=["table", "csv", "json"])
def test_hostile_queries_end_with_an_answer_or_a_sentence(
    made: Path, output: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for query in HOSTILE if not output else HOSTILE[-25:]:
        check(made, query, output, capsys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6 * 2**20, "KiB"


@settings.get_profile("fuzz")
@given(query=queries, output=st.sampled_from(OUTPUTS))
def test_any_text_ends_with_an_answer_or_a_sentence(
    made: Path, query: str, output: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(made, query, output, capsys)
