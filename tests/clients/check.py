#!/usr/bin/env python3
"""Drives a ScyllaDB node, or the stand-in, with the Python driver and the cqlsh installed beside it.

    check.py HOST PORT

`cassandra-driver` and `scylla-driver` both install the package `cassandra`: whichever is there is used.
cqlsh is driven when it stands beside the interpreter, and the report says when it does not. Prints a
line a check and `N passed, N failed`; ends with 1 when one failed.
"""

import datetime
import decimal
import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import namedtuple

from cassandra import AlreadyExists, ConsistencyLevel, FunctionFailure, InvalidRequest, Unauthorized
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.concurrent import execute_concurrent_with_args
from cassandra.policies import RoundRobinPolicy
from cassandra.protocol import SyntaxException
from cassandra.query import UNSET_VALUE, BatchStatement, BatchType, SimpleStatement, dict_factory
from cassandra.util import Date, Duration, OrderedMapSerializedKey, SortedSet, Time, uuid_from_time

HOST, PORT = sys.argv[1], int(sys.argv[2])
# A keyspace a run, so that a run does not meet what another left.
RUN = f"clients_{uuid.uuid4().hex[:8]}"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def equal(found, wanted):
    if found != wanted:
        raise AssertionError(f"found  {found!r}\nwanted {wanted!r}")


def raises(error, text, call):
    try:
        call()
    except error as e:
        if text not in str(e):
            raise AssertionError(f"{e!s} does not say {text!r}") from e
        return
    raise AssertionError(f"no {error.__name__}")


def until(what, test):
    deadline = time.monotonic() + 20
    while not test():
        assert time.monotonic() < deadline, f"20 s passed before {what}"
        time.sleep(0.05)


def connect(**options):
    profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), request_timeout=20)
    return Cluster([HOST], port=PORT, execution_profiles={EXEC_PROFILE_DEFAULT: profile}, **options)


def rows(session, cql, *args):
    return [tuple(row) for row in session.execute(cql, *args)]


def log(session, table, columns):
    """A table's change log in order, with these columns after the operation."""
    names = ", ".join(f'"{c}"' for c in columns)
    found = session.execute(f'SELECT "cdc$time" AS t, "cdc$batch_seq_no" AS n, "cdc$operation" AS o, {names} FROM {table}_scylla_cdc_log')
    ordered = sorted(found, key=lambda r: (r[0].time, r[0].bytes, r[1]))
    return [tuple(row[2:]) for row in ordered]


# The driver


@check
def connects_and_knows_the_cluster(cluster, session):
    hosts = cluster.metadata.all_hosts()
    equal(len(hosts), 1)
    assert hosts[0].host_id and hosts[0].release_version, hosts[0].__dict__
    assert cluster.metadata.cluster_name
    assert cluster.metadata.token_map is not None, "no token map"
    assert "local" in cluster.metadata.keyspaces["system"].tables
    equal(cluster.protocol_version, 4)


@check
def knows_tables_as_they_were_made(cluster, session):
    session.execute("CREATE TYPE place (street text, numbers frozen<list<int>>, \"Zip\" int)")
    session.execute(
        "CREATE TABLE shape (a int, b text, c timeuuid, s text STATIC, v frozen<map<text, frozen<set<int>>>>, p place,"
        " t tuple<int, text>, \"Quoted Name\" double, PRIMARY KEY ((a, b), c)) WITH CLUSTERING ORDER BY (c DESC)"
        " AND comment = 'it''s' AND default_time_to_live = 60 AND cdc = {'enabled': true, 'preimage': 'full', 'ttl': 100}"
    )
    keyspace = cluster.metadata.keyspaces[RUN]
    table = keyspace.tables["shape"]
    equal([c.name for c in table.partition_key], ["a", "b"])
    equal([(c.name, c.is_reversed) for c in table.clustering_key], [("c", True)])
    equal(table.columns["v"].cql_type, "frozen<map<text, frozen<set<int>>>>")
    equal(table.columns["p"].cql_type, "place")
    equal(table.columns["t"].cql_type, "frozen<tuple<int, text>>")
    assert table.columns["s"].is_static
    equal(table.options["comment"], "it's")
    equal(table.options["default_time_to_live"], 60)
    equal(keyspace.user_types["place"].field_names, ["street", "numbers", "Zip"])
    # The log's table is told by an event, after the answer.
    until("the log's table is known", lambda: "shape_scylla_cdc_log" in keyspace.tables)
    text = table.as_cql_query()
    session.execute(text.replace(f"{RUN}.shape", f"{RUN}.shape_again"))
    equal(list(keyspace.tables["shape_again"].columns), list(table.columns))


@check
def carries_every_type(cluster, session):
    moment = uuid_from_time(1_700_000_000)
    Place = namedtuple("Place", "street number")
    session.execute("CREATE TYPE spot (street text, number int)")
    cluster.register_user_type(RUN, "spot", Place)
    values = {
        "ascii": "plain", "bigint": -(2**63), "blob": b"\x00\xff", "boolean": True, "date": Date("1969-12-31"),
        "decimal": decimal.Decimal("-12345678901234567890.0123"), "double": 1.5e300,
        "duration": Duration(months=-1, days=-2, nanoseconds=-3_000_000_007), "float": -0.25, "inet": "2001:db8::1",
        "int": -(2**31), "smallint": -(2**15), "text": "żółw 🐢", "time": Time("23:59:59.999999999"),
        "timestamp": datetime.datetime(1969, 7, 20, 20, 17, 40, 123000), "timeuuid": moment, "tinyint": -128,
        "uuid": uuid.UUID("5b6962dd-3f90-4c93-8f61-eabfa4a803e2"), "varint": -(2**200),
        "list<int>": [3, 1, 3], "set<text>": SortedSet(["b", "a"]), "map<text, bigint>": {"k": 1, "j": -1},
        "frozen<list<frozen<map<int, text>>>>": [OrderedMapSerializedKey, None], "tuple<int, text, uuid>": (1, None, moment),
        "spot": Place("high", 7), "list<frozen<spot>>": [Place("low", None)], "map<uuid, frozen<set<inet>>>": {moment: SortedSet(["10.0.0.1"])},
    }
    values["frozen<list<frozen<map<int, text>>>>"] = [{1: "a"}, {}]
    columns = [f"c{i}" for i in range(len(values))]
    made = ", ".join(f"{c} {ty}" for c, ty in zip(columns, values))
    session.execute(f"CREATE TABLE types (k int PRIMARY KEY, {made}) WITH cdc = {{'enabled': true, 'postimage': true}}")
    marks = ", ".join("?" for _ in columns)
    insert = session.prepare(f"INSERT INTO types (k, {', '.join(columns)}) VALUES (1, {marks})")
    session.execute(insert, list(values.values()))
    session.execute(insert, [None] * len(columns))
    session.execute(insert, list(values.values()))
    found = session.execute(f"SELECT {', '.join(columns)} FROM types WHERE k = 1").one()
    for ty, wanted, value in zip(values, values.values(), found):
        if str(value) != str(wanted) and value != wanted:
            raise AssertionError(f"{ty}: found {value!r}, wanted {wanted!r}")
    # The log has the same values; a list is a map there.
    logged = [r for r in log(session, "types", columns) if r[0] == 9][-1][1:]
    for ty, wanted, value in zip(values, values.values(), logged):
        if ty.startswith("list"):
            value = list(value.values())
        if str(value) != str(wanted) and value != wanted:
            raise AssertionError(f"log of {ty}: found {value!r}, wanted {wanted!r}")


@check
def reads_literals_of_every_type(cluster, session):
    session.execute(
        "CREATE TABLE literals (k int PRIMARY KEY, a ascii, b bigint, c blob, d date, e decimal, f double, g duration, h inet,"
        " i time, j timestamp, l varint, m map<text, int>, n set<int>, o list<double>, p frozen<tuple<int, text>>, q float)"
    )
    session.execute(
        "INSERT INTO literals (k, a, b, c, d, e, f, g, h, i, j, l, m, n, o, p, q) VALUES (-1, $$it's$$, -9223372036854775808,"
        " 0xCAFE, '2024-02-29', -1.50e2, 1e-3, -1mo2d3h, '127.0.0.1', '01:02:03.004', '2024-01-02 03:04:05.678+0100',"
        " 123456789012345678901234567890, {'x': 1, 'w': -2}, {3, 1, 3}, [NaN, -Infinity, 1], (1, 'it''s'), 3)"
    )
    row = session.execute("SELECT * FROM literals").one()
    equal((row.k, row.a, row.b, row.c), (-1, "it's", -(2**63), b"\xca\xfe"))
    equal((str(row.d), row.e, row.f, row.h), ("2024-02-29", decimal.Decimal("-150"), 0.001, "127.0.0.1"))
    equal((row.g.months, row.g.days, row.g.nanoseconds), (-1, -2, -3 * 3600 * 10**9))
    equal((str(row.i), row.j), ("01:02:03.004000000", datetime.datetime(2024, 1, 2, 2, 4, 5, 678000)))
    equal((row.l, dict(row.m), list(row.n), row.p, row.q), (123456789012345678901234567890, {"w": -2, "x": 1}, [1, 3], (1, "it's"), 3.0))
    equal(str(row.o), "[nan, -inf, 1.0]")


@check
def logs_what_is_done(cluster, session):
    session.execute(
        "CREATE TABLE done (k int, c int, s text STATIC, v text, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true}"
    )
    for cql in [
        "INSERT INTO done (k, c, v) VALUES (1, 1, 'a')",
        "UPDATE done SET v = 'b' WHERE k = 1 AND c = 1",
        "UPDATE done SET s = 'x' WHERE k = 1",
        "DELETE v FROM done WHERE k = 1 AND c = 1",
        "DELETE FROM done WHERE k = 1 AND c = 1",
        "DELETE FROM done WHERE k = 1 AND c >= 2 AND c < 5",
        "DELETE FROM done WHERE k = 1 AND c > 7",
        "DELETE FROM done WHERE k = 1",
    ]:
        session.execute(cql)
    equal(
        log(session, "done", ["k", "c", "s", "v", "cdc$deleted_v"]),
        [
            (2, 1, 1, None, "a", None),
            (1, 1, 1, None, "b", None),
            (1, 1, None, "x", None, None),
            (1, 1, 1, None, None, True),
            (3, 1, 1, None, None, None),
            (5, 1, 2, None, None, None),
            (8, 1, 5, None, None, None),
            (6, 1, 7, None, None, None),
            (7, 1, None, None, None, None),
            (4, 1, None, None, None, None),
        ],
    )


@check
def logs_images(cluster, session):
    session.execute(
        "CREATE TABLE images (k int PRIMARY KEY, a int, b int) WITH cdc = {'enabled': true, 'preimage': 'full', 'postimage': true}"
    )
    session.execute("INSERT INTO images (k, a, b) VALUES (1, 1, 1)")
    session.execute("UPDATE images SET a = 2 WHERE k = 1")
    session.execute("DELETE FROM images WHERE k = 1")
    equal(
        log(session, "images", ["k", "a", "b", "cdc$end_of_batch"]),
        [
            (2, 1, 1, 1, None),
            (9, 1, 1, 1, True),
            (0, 1, 1, 1, None),
            (1, 1, 2, None, None),
            (9, 1, 2, 1, True),
            (0, 1, 2, 1, None),
            # Without a clustering key a row is a partition.
            (4, 1, None, None, True),
        ],
    )


@check
def changes_collections(cluster, session):
    session.execute(
        "CREATE TABLE collections (k int PRIMARY KEY, s set<text>, l list<int>, m map<text, int>, p spot) WITH cdc = {'enabled': true}"
    )
    session.execute("UPDATE collections SET s = s + {'a', 'b'}, l = l + [1, 2], m['x'] = 1, p.street = 'up' WHERE k = 1")
    session.execute("UPDATE collections SET s = s - {'a'}, l = [0] + l, m = m + {'y': 2}, p.number = 3 WHERE k = 1")
    session.execute("UPDATE collections SET l[1] = 9 WHERE k = 1")
    session.execute("DELETE m['x'], l[0], p.street FROM collections WHERE k = 1")
    row = session.execute("SELECT s, l, m, p FROM collections").one()
    equal((set(row.s), row.l, dict(row.m), tuple(row.p)), ({"b"}, [9, 2], {"y": 2}, (None, 3)))
    changes = log(session, "collections", ["s", "cdc$deleted_elements_s", "m", "cdc$deleted_elements_m"])
    equal(len(changes), 4)
    equal((set(changes[0][1]), dict(changes[0][3])), ({"a", "b"}, {"x": 1}))
    equal((changes[1][1], set(changes[1][2]), dict(changes[1][3])), (None, {"a"}, {"y": 2}))
    equal(set(changes[3][4]), {"x"})
    session.execute("UPDATE collections SET s = {'new'} WHERE k = 1")
    last = log(session, "collections", ["s", "cdc$deleted_s"])[-1]
    equal((set(last[1]), last[2]), ({"new"}, True))


@check
def pages(cluster, session):
    session.execute("CREATE TABLE pages (k int, c int, PRIMARY KEY (k, c))")
    insert = session.prepare("INSERT INTO pages (k, c) VALUES (?, ?)")
    results = execute_concurrent_with_args(session, insert, [(k, c) for k in range(5) for c in range(40)], concurrency=50)
    assert all(ok for ok, _ in results), [r for ok, r in results if not ok][:1]
    for size in (1, 7, 40, 200, 1000):
        statement = SimpleStatement("SELECT k, c FROM pages", fetch_size=size)
        found = list(session.execute(statement))
        equal(len({tuple(r) for r in found}), 200)
        equal(len(found), 200)
    # By hand, with the state between.
    statement = SimpleStatement("SELECT c FROM pages WHERE k = 3 ORDER BY c DESC", fetch_size=15)
    state, all_rows = None, []
    for _ in range(5):
        result = session.execute(statement, paging_state=state)
        all_rows += [r.c for r in result.current_rows]
        state = result.paging_state
        if state is None:
            break
    equal(all_rows, list(range(39, -1, -1)))
    equal(rows(session, "SELECT c FROM pages WHERE k = 1 AND c > 5 AND c <= 8"), [(6,), (7,), (8,)])
    equal(rows(session, "SELECT c FROM pages WHERE k IN (1, 2) AND c IN (3, 4)"), [(3,), (4,), (3,), (4,)])
    equal(rows(session, "SELECT count(*) FROM pages"), [(200,)])
    equal(rows(session, "SELECT c FROM pages WHERE k = 1 LIMIT 2"), [(0,), (1,)])
    equal(len(rows(session, "SELECT k FROM pages PER PARTITION LIMIT 3")), 15)
    equal(sorted(rows(session, "SELECT DISTINCT k FROM pages")), [(i,) for i in range(5)])
    equal(sum(r[1] for r in rows(session, "SELECT k, sum(c) FROM pages GROUP BY k")), 5 * 780)


@check
def batches(cluster, session):
    session.execute("CREATE TABLE batches (k int, c int, v int, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true}")
    session.execute("CREATE TABLE counts (k int PRIMARY KEY, n counter)")
    insert = session.prepare("INSERT INTO batches (k, c, v) VALUES (?, ?, ?)")
    for kind in (BatchType.LOGGED, BatchType.UNLOGGED):
        batch = BatchStatement(kind)
        for c in range(3):
            batch.add(insert, (kind.value, c, c))
        batch.add("DELETE FROM batches WHERE k = %s AND c = %s", (kind.value, 9))
        session.execute(batch)
    # One mutation a partition: its changes share a time and are numbered.
    logged = session.execute('SELECT "cdc$time" AS t, "cdc$batch_seq_no" AS n, "cdc$end_of_batch" AS e, k FROM batches_scylla_cdc_log')
    groups = {}
    for row in logged:
        groups.setdefault((row.k, row.t), []).append((row.n, row.e))
    equal(sorted(groups.values()), [[(0, None), (1, None), (2, None), (3, True)]] * 2)
    equal(len(rows(session, "SELECT * FROM batches")), 6)
    batch = BatchStatement(BatchType.COUNTER)
    batch.add("UPDATE counts SET n = n + 5 WHERE k = 1")
    batch.add("UPDATE counts SET n = n - 2 WHERE k = 1")
    session.execute(batch)
    equal(rows(session, "SELECT n FROM counts WHERE k = 1"), [(3,)])
    text = "BEGIN BATCH USING TIMESTAMP 1000 INSERT INTO {0} (k, c, v) VALUES (7, 1, 1); UPDATE {0} SET v = 2 WHERE k = 7 AND c = 2; APPLY BATCH"
    raises(InvalidRequest, "from the past", lambda: session.execute(text.format("batches")))
    session.execute("CREATE TABLE plain (k int, c int, v int, PRIMARY KEY (k, c))")
    session.execute(text.format("plain"))
    equal(rows(session, "SELECT c, writetime(v) FROM plain WHERE k = 7"), [(1, 1000), (2, 1000)])


@check
def writes_on_condition(cluster, session):
    session.execute("CREATE TABLE light (k int PRIMARY KEY, v text)")
    first = session.execute("INSERT INTO light (k, v) VALUES (1, 'a') IF NOT EXISTS")
    assert first.was_applied
    again = session.execute("INSERT INTO light (k, v) VALUES (1, 'b') IF NOT EXISTS").one()
    equal((again[0], again.k, again.v), (False, 1, "a"))
    refused = session.execute("UPDATE light SET v = 'c' WHERE k = 1 IF v = 'x'").one()
    equal(refused[0], False)
    assert session.execute("UPDATE light SET v = 'c' WHERE k = 1 IF v = 'a'").was_applied
    assert session.execute(session.prepare("UPDATE light SET v = ? WHERE k = ? IF v IN ?"), ("d", 1, ["b", "c"])).was_applied
    assert not session.execute("DELETE FROM light WHERE k = 2 IF EXISTS").was_applied
    assert session.execute("DELETE FROM light WHERE k = 1 IF EXISTS").was_applied
    equal(rows(session, "SELECT * FROM light"), [])


@check
def binds_by_name_and_leaves_unset(cluster, session):
    session.execute("CREATE TABLE bound (k int PRIMARY KEY, a int, b int)")
    insert = session.prepare("INSERT INTO bound (k, a, b) VALUES (:k, :a, :a)")
    session.execute(insert, {"k": 1, "a": 5})
    session.execute(session.prepare("INSERT INTO bound (k, a, b) VALUES (?, ?, ?)"), (1, UNSET_VALUE, 6))
    equal(rows(session, "SELECT a, b FROM bound"), [(5, 6)])
    session.execute("INSERT INTO bound (k, a) VALUES (%(k)s, %(a)s)", {"k": 2, "a": 7})
    equal(rows(session, "SELECT a, b FROM bound WHERE k = 2"), [(7, None)])
    statement = session.prepare("SELECT a FROM bound WHERE k = ?")
    equal(statement.routing_key_indexes, [0])
    assert session.execute(statement, [1]).one().a == 5
    many = session.prepare("SELECT k FROM bound WHERE k IN ?")
    equal(sorted(session.execute(many, [[1, 2, 3]])), [(1,), (2,)])


@check
def times_and_expires(cluster, session):
    session.execute("CREATE TABLE timed (k int PRIMARY KEY, a int, b int)")
    session.execute("INSERT INTO timed (k, a) VALUES (1, 1) USING TIMESTAMP 5000 AND TTL 1000")
    session.execute("UPDATE timed USING TIMESTAMP 4000 SET a = 2, b = 3 WHERE k = 1")
    row = session.execute("SELECT a, b, writetime(a) AS w, ttl(a) AS t, ttl(b) AS u FROM timed").one()
    equal((row.a, row.b, row.w, row.u), (1, 3, 5000, None))
    assert 990 <= row.t <= 1000, row.t
    session.execute("INSERT INTO timed (k, a) VALUES (2, 1) USING TTL 1")
    until("a row with a TTL of 1 s is gone", lambda: not rows(session, "SELECT a FROM timed WHERE k = 2"))


@check
def calls_functions(cluster, session):
    session.execute("CREATE TABLE calls (k int PRIMARY KEY, t timeuuid, v text)")
    before = time.time()
    session.execute("INSERT INTO calls (k, t, v) VALUES (1, now(), 'x')")
    row = session.execute(
        "SELECT toTimestamp(t) AS a, toUnixTimestamp(t) AS b, dateOf(t) AS c, toDate(t) AS d, token(k) AS e, cast(k AS text) AS f,"
        " blobAsInt(intAsBlob(5)) AS g, uuid() AS h FROM calls"
    ).one()
    assert abs(row.b / 1000 - before) < 60 and row.a == row.c, row
    equal((str(row.d), row.f, row.g, row.h.version), (datetime.datetime.fromtimestamp(row.b / 1000, datetime.timezone.utc).date().isoformat(), "1", 5, 4))
    # Murmur3 as ScyllaDB has it, for a known key.
    equal(row.e, -4069959284402364209)
    equal(rows(session, "SELECT k FROM calls WHERE token(k) > -4069959284402364210 AND token(k) <= -4069959284402364209"), [(1,)])
    found = rows(session, "SELECT k FROM calls WHERE t > minTimeuuid('2020-01-01') AND t < maxTimeuuid('2100-01-01') ALLOW FILTERING")
    equal(found, [(1,)])


@check
def refuses_with_the_right_error(cluster, session):
    raises(SyntaxException, "line 1:0 no viable alternative at input 'FOO'", lambda: session.execute("FOO"))
    raises(InvalidRequest, "unconfigured table", lambda: session.execute("SELECT * FROM nothing"))
    raises(InvalidRequest, "", lambda: session.execute("SELECT nothing FROM bound"))
    raises(InvalidRequest, "Invalid STRING constant (x)", lambda: session.execute("INSERT INTO bound (k) VALUES ('x')"))
    raises(InvalidRequest, "", lambda: session.execute("SELECT * FROM bound WHERE a = 1"))
    raises(InvalidRequest, "", lambda: session.execute("INSERT INTO bound (a) VALUES (1)"))
    raises(AlreadyExists, "", lambda: session.execute("CREATE TABLE bound (k int PRIMARY KEY)"))
    raises(AlreadyExists, "", lambda: session.execute(f"CREATE KEYSPACE {RUN} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}}"))
    raises(InvalidRequest, "", lambda: session.execute("CREATE INDEX ON bound (a)"))
    raises(InvalidRequest, "", lambda: session.execute("ALTER TABLE counts WITH cdc = {'enabled': true}"))


@check
def sees_changes_of_the_schema(cluster, session):
    session.execute("CREATE TABLE changing (k int PRIMARY KEY, a int) WITH cdc = {'enabled': true}")
    select = session.prepare("SELECT * FROM changing WHERE k = ?")
    insert = session.prepare("INSERT INTO changing (k, a) VALUES (?, ?)")
    session.execute(insert, (1, 1))
    equal(len(session.execute(select, [1]).one()), 2)
    other = connect()
    try:
        seen = other.connect(RUN)
        seen.execute("ALTER TABLE changing ADD b text")
        seen.execute("INSERT INTO changing (k, a, b) VALUES (2, 2, 'x')")
        # The other connection is told by an event.
        until("the change of the schema is seen", lambda: "b" in cluster.metadata.keyspaces[RUN].tables["changing"].columns)
    finally:
        other.shutdown()
    row = session.execute(select, [2]).one()
    equal(tuple(row), (2, 2, "x"))
    session.execute(insert, (3, 3))
    tables = cluster.metadata.keyspaces[RUN].tables
    until("the change of the log is seen", lambda: "b" in getattr(tables.get("changing_scylla_cdc_log"), "columns", ()))
    session.execute("ALTER TABLE changing DROP b")
    equal(tuple(session.execute(select, [2]).one()), (2, 2))
    session.execute("ALTER TYPE spot ADD country text")
    equal(cluster.metadata.keyspaces[RUN].user_types["spot"].field_names, ["street", "number", "country"])
    session.execute("TRUNCATE changing")
    equal(rows(session, "SELECT * FROM changing"), [])
    session.execute("DROP TABLE changing")
    assert "changing" not in cluster.metadata.keyspaces[RUN].tables


@check
def finds_streams_of_changes(cluster, session):
    session.execute(f"SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'")
    times = rows(session, "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'")
    assert times, "no generation"
    streams = session.execute("SELECT streams FROM system_distributed.cdc_streams_descriptions_v2 WHERE time = %s", times[0])
    known = {stream for row in streams for stream in row.streams}
    used = {row[0] for row in session.execute('SELECT DISTINCT "cdc$stream_id" FROM batches_scylla_cdc_log')}
    assert used and used <= known, (used, known)
    keyspace = f"{RUN}_tablets"
    session.execute(
        f"CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}} AND tablets = {{'initial': 4}}"
    )
    session.execute(f"CREATE TABLE {keyspace}.t (k int PRIMARY KEY, v int) WITH cdc = {{'enabled': true}}")
    for k in range(20):
        session.execute(f"INSERT INTO {keyspace}.t (k, v) VALUES (%s, 1)", [k])
    known = {r.stream_id for r in session.execute(f"SELECT stream_id FROM system.cdc_streams WHERE keyspace_name = '{keyspace}' AND table_name = 't' ALLOW FILTERING")}
    used = {row[0] for row in session.execute(f'SELECT DISTINCT "cdc$stream_id" FROM {keyspace}.t_scylla_cdc_log')}
    assert used and used <= known, (used, known)
    session.execute(f"DROP KEYSPACE {keyspace}")


@check
def answers_other_row_shapes_and_levels(cluster, session):
    session.execute("INSERT INTO bound (k, a) VALUES (9, 9)")
    for level in (ConsistencyLevel.ONE, ConsistencyLevel.QUORUM, ConsistencyLevel.LOCAL_ONE, ConsistencyLevel.ALL):
        statement = SimpleStatement("SELECT k, a FROM bound WHERE k = 9", consistency_level=level)
        equal(tuple(session.execute(statement).one()), (9, 9))
    profile = session.execution_profile_clone_update(EXEC_PROFILE_DEFAULT, row_factory=dict_factory)
    equal(session.execute("SELECT k, a AS b FROM bound WHERE k = 9", execution_profile=profile).one(), {"k": 9, "b": 9})
    equal(rows(session, "SELECT k FROM bound WHERE k = 9 BYPASS CACHE USING TIMEOUT 5s"), [(9,)])


@check
def connects_with_and_without_compression(cluster, session):
    for compression in (False, "lz4", "snappy"):
        other = connect(compression=compression)
        try:
            again = other.connect(RUN)
            big = "x" * 500_000
            again.execute("CREATE TABLE IF NOT EXISTS big (k int PRIMARY KEY, v text)")
            again.execute(again.prepare("INSERT INTO big (k, v) VALUES (?, ?)"), (1, big))
            equal(again.execute("SELECT v FROM big").one().v, big)
        finally:
            other.shutdown()


@check
def traces_a_request(cluster, session):
    session.execute("CREATE TABLE traced (k int PRIMARY KEY, v text)")
    equal(session.execute("INSERT INTO traced (k, v) VALUES (1, 'a')").get_query_trace(), None)
    insert = session.prepare("INSERT INTO traced (k, v) VALUES (?, ?)")
    batch = BatchStatement(BatchType.LOGGED)
    batch.add(insert, (3, "c"))
    batch.add("DELETE FROM traced WHERE k = 4")
    found = {}
    for name, statement, values in [
        ("prepared", insert, (2, "b")),
        ("query", "SELECT v FROM traced WHERE k = 2", None),
        ("batch", batch, None),
    ]:
        trace = session.execute(statement, values, trace=True).get_query_trace()
        assert trace.duration and trace.started_at and trace.coordinator == HOST, vars(trace)
        assert len(trace.events) >= 3 and all(e.source == HOST and e.description for e in trace.events), trace.events
        equal(sorted(trace.events, key=lambda e: e.datetime), list(trace.events))
        found[name] = trace
    equal(found["query"].request_type, "Execute CQL3 query")
    equal(found["query"].parameters["query"], "SELECT v FROM traced WHERE k = 2")
    assert found["prepared"].request_type.startswith("Execute CQL3 prepared query ["), found["prepared"].request_type
    equal(found["prepared"].parameters["param[1]"], "b")
    equal(found["batch"].request_type, "Execute batch of CQL3 queries")
    equal(found["batch"].parameters["query[1]"], "DELETE FROM traced WHERE k = 4")
    # One that fails has a trace too.
    future = session.execute_async("INSERT INTO traced (k) VALUES (fromJson('dog'))", trace=True)
    raises(FunctionFailure, "fromJson", future.result)
    equal(future.get_query_trace().request_type, "Execute CQL3 query")


@check
def speaks_json(cluster, session):
    session.execute("CREATE TABLE documents (k int PRIMARY KEY, tags set<text>, \"At\" timestamp, total decimal, done boolean) WITH cdc = {'enabled': true}")
    insert = session.prepare("INSERT INTO documents JSON ?")
    session.execute(insert, ('{"k": 1, "tags": ["b", "a"], "\\"At\\"": "2024-01-02 03:04:05.678Z", "total": 9.50, "done": true}',))
    equal(rows(session, "SELECT JSON * FROM documents"),
          [('{"k": 1, "\\"At\\"": "2024-01-02 03:04:05.678Z", "done": true, "tags": ["a", "b"], "total": 9.5}',)])
    session.execute("INSERT INTO documents JSON '{\"k\": 1, \"done\": null}' DEFAULT UNSET")
    equal(rows(session, "SELECT total, done FROM documents"), [(decimal.Decimal("9.5"), None)])
    session.execute(session.prepare("UPDATE documents SET tags = fromJson(?) WHERE k = ?"), ('["c"]', 1))
    equal(rows(session, "SELECT toJson(tags), toJson(done) FROM documents"), [('["c"]', "null")])
    equal([tuple(r) for r in log(session, "documents", ["done", "cdc$deleted_done"])], [(2, True, None), (2, None, True), (1, None, None)])
    raises(InvalidRequest, "unrecognized column", lambda: session.execute(insert, ('{"k": 1, "z": 1}',)))


# cqlsh

CQLSH = pathlib.Path(sys.executable).with_name("cqlsh")


@check
def selects_in_every_shape(cluster, session):
    session.execute("CREATE TABLE shapes (p int, c int, d text, s int STATIC, v int, PRIMARY KEY (p, c, d))")
    for p in range(3):
        session.execute(f"UPDATE shapes SET s = {p * 10} WHERE p = {p}")
        for c in range(4):
            session.execute("INSERT INTO shapes (p, c, d, v) VALUES (%s, %s, %s, %s)", (p, c, "abc"[c % 3], p + c))
    equal(sorted(rows(session, "SELECT DISTINCT p, s FROM shapes")), [(0, 0), (1, 10), (2, 20)])
    equal(sorted(rows(session, "SELECT p, c FROM shapes PER PARTITION LIMIT 1")), [(0, 0), (1, 0), (2, 0)])
    equal(sorted(rows(session, "SELECT p, count(*), sum(v), min(c), max(c), avg(v) FROM shapes GROUP BY p")),
          [(0, 4, 6, 0, 3, 1), (1, 4, 10, 0, 3, 2), (2, 4, 14, 0, 3, 3)])
    equal(rows(session, "SELECT c FROM shapes WHERE p = 1 AND (c, d) > (0, 'a') AND (c, d) <= (2, 'c')"), [(1,), (2,)])
    equal(rows(session, "SELECT c FROM shapes WHERE p = 1 AND (c, d) IN ((0, 'a'), (3, 'a'), (3, 'b'))"), [(0,), (3,)])
    equal(rows(session, "SELECT c FROM shapes WHERE p IN (0, 2) AND c IN (1, 9) AND d = 'b'"), [(1,), (1,)])
    equal(rows(session, "SELECT c FROM shapes WHERE p = 1 ORDER BY c DESC LIMIT 2"), [(3,), (2,)])
    equal(sorted(rows(session, "SELECT p, c FROM shapes WHERE v = 3 ALLOW FILTERING")), [(0, 3), (1, 2), (2, 1)])
    tokens = dict(rows(session, "SELECT DISTINCT p, token(p) FROM shapes"))
    ring = cluster.metadata.token_map.token_class
    equal({p: ring.from_key(p.to_bytes(4, "big")).value for p in tokens}, tokens)
    middle = sorted(tokens.values())[1]
    equal(len(rows(session, f"SELECT p FROM shapes WHERE token(p) <= {middle}")), 8)
    raises(InvalidRequest, "ALLOW FILTERING", lambda: session.execute("SELECT * FROM shapes WHERE v = 3"))
    raises(InvalidRequest, "not supported", lambda: session.execute("CREATE INDEX ON shapes (v)"))
    raises(InvalidRequest, "not supported", lambda: session.execute(
        "CREATE MATERIALIZED VIEW view AS SELECT * FROM shapes WHERE p IS NOT NULL AND c IS NOT NULL AND d IS NOT NULL PRIMARY KEY (c, p, d)"))


@check
def goes_down_to_the_version_it_speaks(cluster, session):
    for asked in (5, 4, 3):
        other = connect(protocol_version=asked)
        try:
            # An explicit version is not negotiated: the driver says that it is not spoken.
            if asked == 4:
                equal(other.connect().execute("SELECT key FROM system.local").one()[0], "local")
            else:
                raises(NoHostAvailable, "version", other.connect)
        finally:
            other.shutdown()


@check
def pages_and_writes_side_by_side(cluster, session):
    session.execute("CREATE TABLE many (k int, c int, v text, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true, 'delta': 'keys', 'postimage': true}")
    insert = session.prepare("INSERT INTO many (k, c, v) VALUES (?, ?, ?)")
    done = execute_concurrent_with_args(session, insert, [(n % 7, n, "x" * 100) for n in range(1000)], concurrency=50)
    assert all(ok for ok, _ in done)
    future = session.execute_async(SimpleStatement("SELECT c FROM many", fetch_size=64))
    seen, finished, failed = [], [], []

    def page(found):
        seen.extend(row.c for row in found)
        if future.has_more_pages:
            future.start_fetching_next_page()
        else:
            finished.append(True)

    future.add_callbacks(page, failed.append)
    until("all pages have come", lambda: finished or failed)
    equal((sorted(seen), failed), (list(range(1000)), []))
    changes = log(session, "many", ["k", "c", "v"])
    # Only the keys in the delta, all of the row in the image.
    equal(sorted(c for o, _, c, v in changes if o == 2 and v is None), list(range(1000)))
    equal(sorted(c for o, _, c, v in changes if o == 9 and v == "x" * 100), list(range(1000)))


@check
def a_log_follows_its_table(cluster, session):
    session.execute("CREATE TABLE followed (k int PRIMARY KEY, a int) WITH cdc = {'enabled': true, 'ttl': 0}")
    session.execute("INSERT INTO followed (k, a) VALUES (1, 1)")
    session.execute("ALTER TABLE followed ADD b set<int>")
    session.execute("INSERT INTO followed (k, a, b) VALUES (1, 2, {1})")
    session.execute("ALTER TABLE followed DROP a")
    session.execute("UPDATE followed SET b = b - {1} WHERE k = 1")
    equal(log(session, "followed", ["k", "b", "cdc$deleted_b", "cdc$deleted_elements_b"]),
          [(2, 1, None, None, None), (2, 1, SortedSet([1]), True, None), (1, 1, None, None, SortedSet([1]))])
    raises(InvalidRequest, "a", lambda: session.execute('SELECT a FROM followed_scylla_cdc_log'))
    session.execute("TRUNCATE followed")
    equal(len(log(session, "followed", ["k"])), 3)
    for cql, text in [
        ("ALTER TABLE followed_scylla_cdc_log ADD c int", "Modify the base table instead."),
        ("ALTER TABLE followed_scylla_cdc_log RENAME k TO c", "Cannot rename a column of a CDC log table."),
        ("ALTER TABLE followed_scylla_cdc_log WITH cdc = {'enabled': true}", "CDC"),
    ]:
        raises(InvalidRequest, text, lambda: session.execute(cql))
    raises(Unauthorized, "Cannot DROP cdc log table", lambda: session.execute("DROP TABLE followed_scylla_cdc_log"))
    # Off, the log stays and is not written; on again, it goes on; dropped, it goes too.
    session.execute("ALTER TABLE followed WITH cdc = {'enabled': false}")
    session.execute("INSERT INTO followed (k) VALUES (2)")
    equal(len(log(session, "followed", ["k"])), 3)
    session.execute("ALTER TABLE followed WITH cdc = {'enabled': true}")
    session.execute("INSERT INTO followed (k) VALUES (3)")
    equal([r[1] for r in log(session, "followed", ["k"])][3:], [3])
    session.execute("DROP TABLE followed")
    raises(InvalidRequest, "unconfigured table", lambda: session.execute("SELECT * FROM followed_scylla_cdc_log"))
    raises(InvalidRequest, "Counter support", lambda: session.execute("CREATE TABLE counted (k int PRIMARY KEY, n counter) WITH cdc = {'enabled': true}"))


@check
def writes_its_schema_down(cluster, session):
    text = cluster.metadata.export_schema_as_string()
    for part in [f"CREATE KEYSPACE {RUN}", f"CREATE TYPE {RUN}.spot", f"CREATE TABLE {RUN}.many (", "CLUSTERING ORDER BY (c DESC)"]:
        assert part in text, f"{part} is not in the schema"



def cqlsh(text, fails=False):
    command = [str(CQLSH), HOST, str(PORT), "--request-timeout=20", "-e", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    noise = ("WARNING: cqlsh was built",)
    errors = "\n".join(line for line in done.stderr.splitlines() if line and not line.startswith(noise))
    if fails:
        assert done.returncode != 0, f"cqlsh ended with 0\n{done.stdout}"
        return errors
    assert done.returncode == 0 and not errors, f"cqlsh ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def contains(text, *parts):
    for part in parts:
        assert part in text, f"{part!r} is not in\n{text}"


INSTALLED = {p.metadata["Name"]: p.version for p in importlib.metadata.distributions()}


def cqlsh_check(function):
    def run(cluster, session):
        function()

    run.__name__ = f"cqlsh_{function.__name__}"
    # Apache's cqlsh asks a server of version 4 to describe and refuses to do it for another; ScyllaDB
    # says that it is 3.0.8.
    if CQLSH.exists() and (function.__name__ != "describes" or "scylla-cqlsh" in INSTALLED):
        CHECKS.append(run)
    return function


@cqlsh_check
def makes_a_table_and_reads_its_log():
    keyspace = f"{RUN}_sh"
    cqlsh(f"CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}}")
    cqlsh(
        f"USE {keyspace}; CREATE TYPE money (amount decimal, currency text);"
        " CREATE TABLE orders (id uuid, line int, note text, total frozen<money>, tags set<text>, PRIMARY KEY (id, line))"
        " WITH CLUSTERING ORDER BY (line DESC) AND cdc = {'enabled': true, 'preimage': true, 'postimage': true};"
    )
    cqlsh(
        f"INSERT INTO {keyspace}.orders (id, line, note, total, tags) VALUES (5b6962dd-3f90-4c93-8f61-eabfa4a803e2, 1, 'it''s',"
        f" {{amount: 9.99, currency: 'EUR'}}, {{'a', 'b'}}); UPDATE {keyspace}.orders SET note = 'new' WHERE"
        f" id = 5b6962dd-3f90-4c93-8f61-eabfa4a803e2 AND line = 1; DELETE FROM {keyspace}.orders WHERE id = 5b6962dd-3f90-4c93-8f61-eabfa4a803e2 AND line = 1"
    )
    text = cqlsh(f'SELECT "cdc$operation", "cdc$batch_seq_no", note, total, tags FROM {keyspace}.orders_scylla_cdc_log')
    contains(text, "cdc$operation", "it's", "{amount: 9.99, currency: 'EUR'}", "{'a', 'b'}", "new")
    contains(cqlsh(f"SELECT * FROM {keyspace}.orders_scylla_cdc_log"), "cdc$stream_id", "cdc$time", "cdc$deleted_elements_tags")
    contains(cqlsh(f"EXPAND ON; SELECT count(*) FROM {keyspace}.orders"), "count | 0")


@cqlsh_check
def describes():
    keyspace = f"{RUN}_sh"
    contains(cqlsh("DESCRIBE KEYSPACES"), keyspace, "system_schema", "system_distributed")
    contains(cqlsh(f"USE {keyspace}; DESCRIBE TABLES"), "orders")
    made = cqlsh(f"DESCRIBE TABLE {keyspace}.orders")
    contains(made, "CREATE TABLE", "tags set<text>", "PRIMARY KEY (id, line)", "CLUSTERING ORDER BY (line DESC)", "total frozen<money>")
    contains(cqlsh(f"DESCRIBE TYPE {keyspace}.money"), "CREATE TYPE", "amount decimal")
    contains(cqlsh(f"DESCRIBE KEYSPACE {keyspace}"), "CREATE KEYSPACE", "CREATE TYPE", "CREATE TABLE")
    contains(cqlsh("DESCRIBE CLUSTER"), "Cluster:", "Partitioner:")
    contains(cqlsh("DESCRIBE SCHEMA"), f"CREATE TABLE {keyspace}.orders")
    contains(cqlsh("SHOW VERSION"), "CQL spec")


@cqlsh_check
def copies_and_tells_errors():
    keyspace = f"{RUN}_sh"
    cqlsh(f"CREATE TABLE {keyspace}.copied (k int PRIMARY KEY, v text); INSERT INTO {keyspace}.copied (k, v) VALUES (1, 'one')")
    contains(cqlsh(f"COPY {keyspace}.copied TO STDOUT"), "1,one")
    with tempfile.TemporaryDirectory() as folder:
        csv, script = pathlib.Path(folder, "in.csv"), pathlib.Path(folder, "script.cql")
        csv.write_text("2,two\n3,three\n")
        contains(cqlsh(f"COPY {keyspace}.copied (k, v) FROM '{csv}'"), "2 rows imported")
        script.write_text(f"INSERT INTO {keyspace}.copied (k, v) VALUES (4, 'four');")
        cqlsh(f"SOURCE '{script}'")
    contains(cqlsh(f"SELECT count(*) FROM {keyspace}.copied"), "4")
    contains(cqlsh(f"EXPAND ON; SELECT * FROM {keyspace}.copied WHERE k = 3"), "@ Row 1", "three")
    traced = cqlsh(f"TRACING ON; SELECT v FROM {keyspace}.copied WHERE k = 2")
    contains(traced, "two", "Tracing session:", "Execute CQL3 query", "Done processing - preparing a result", "Request complete")
    contains(cqlsh("CONSISTENCY QUORUM"), "QUORUM")
    contains(cqlsh(f"PAGING 10; SELECT * FROM {keyspace}.copied WHERE k = 1; -- a comment"), "one")
    contains(cqlsh("SELECT * FROM nothing.at_all", fails=True), "InvalidRequest")
    contains(cqlsh("SELEC", fails=True), "SyntaxException", "line 1:0 no viable alternative at input 'SELEC'")
    cqlsh(f"DROP KEYSPACE {keyspace}")


def main():
    names = ("cassandra-driver", "scylla-driver", "cqlsh", "scylla-cqlsh")
    print("with", ", ".join(f"{n} {INSTALLED[n]}" for n in names if n in INSTALLED), "" if CQLSH.exists() else "(no cqlsh)", flush=True)
    passed = failed = 0
    cluster = connect()
    try:
        session = cluster.connect()
        session.execute(f"CREATE KEYSPACE {RUN} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}} AND tablets = {{'enabled': false}}")
        session.set_keyspace(RUN)
        for function in CHECKS:
            name = function.__name__.replace("_", " ")
            try:
                function(cluster, session)
            except Exception:
                failed += 1
                print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
            else:
                passed += 1
                print(f"ok {name}", flush=True)
        session.execute(f"DROP KEYSPACE {RUN}")
    finally:
        cluster.shutdown()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoHostAvailable as e:
        sys.exit(f"check.py: {e}")
