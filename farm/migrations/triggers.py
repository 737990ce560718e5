"""The triggers that hold law 1 in the database itself, whoever writes to it, with whatever tool.

Each rule refuses a row for which `when` and `bad` hold; both dialects are made from the same words. All of them are
dropped before the schema changes, or when one does not stand as it is written here, and stand again before that
transaction ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    table: str
    event: str  # INSERT, UPDATE OF columns, DELETE, TRUNCATE
    message: str
    bad: str = "1 = 1"
    when: str = "1 = 1"
    locks: str = ""  # PostgreSQL: rows that must stay while `bad` is judged
    only: str = ""  # the one dialect that needs it


VERIFIED = """EXISTS (
    SELECT 1 FROM artifact a JOIN verdict v ON v.id = a.verdict_id
    WHERE a.id = NEW.artifact_id AND a.job_id = NEW.id AND a.project_id = NEW.project_id
      AND a.verified_at IS NOT NULL AND a.manifest_sha256 <> ''
      AND v.job_id = NEW.id AND v.stage = 'frame' AND v.subject = a.frame_sha256 {more})"""
# The gate allowed this very frame and had nothing against anything else of that attempt (its previews do not count) ...
ALLOWED = """v.outcome = 'allow' AND NOT EXISTS (
    SELECT 1 FROM verdict o WHERE o.job_id = v.job_id AND o.attempt = v.attempt AND o.outcome <> 'allow'
      AND o.stage <> 'preview')
    AND NOT EXISTS (SELECT 1 FROM decision said WHERE said.job_id = NEW.id)"""
# ... or a person approved a picture with these very pixels, and it is that person's last word on the job.
APPROVED = """EXISTS (
    SELECT 1 FROM decision d JOIN artifact seen ON seen.id = d.artifact_id
    WHERE d.id = a.decision_id AND d.job_id = NEW.id AND d.outcome = 'approve'
      AND seen.job_id = NEW.id AND seen.frame_sha256 = a.frame_sha256
      AND NOT EXISTS (SELECT 1 FROM decision later WHERE later.job_id = d.job_id AND later.id > d.id))"""
PUBLISHABLE = VERIFIED.format(more=f"AND (({ALLOWED}) OR {APPROVED})")
HOLDABLE = VERIFIED.format(more="")
KEEP_ARTIFACT = "PERFORM 1 FROM artifact WHERE id = NEW.artifact_id FOR KEY SHARE;"
# What is on a list of illegal pictures is shown to nobody, whatever a person says.
ILLEGAL = "EXISTS (SELECT 1 FROM verdict v WHERE v.job_id = NEW.id AND v.illegal AND v.stage <> 'preview')"
ARTIFACT_REFERS = ["id", "project_id", "job_id", "verdict_id", "decision_id", "created_at"]
ARTIFACT_HOLDS = ["key", "frame_sha256", "manifest_sha256", "label", "mime", "width", "height", "bytes"]
ARTIFACT_FACTS = ARTIFACT_REFERS + ARTIFACT_HOLDS
AUDIT_FACTS = ["id", "project_id", "actor", "action", "subject", "data", "created_at"]


def changed(columns: list[str]) -> list[str]:
    return [f"CAST(NEW.{name} AS TEXT) {{differs}} CAST(OLD.{name} AS TEXT)" for name in columns]


def _guards(name: str, event: str) -> list[Rule]:
    shared = {"table": "job", "event": event, "locks": KEEP_ARTIFACT}
    return [
        Rule(
            f"law1_published_{name}",
            message="law 1: published needs a verified artifact and an allowing verdict on its frame, or an approval",
            when="NEW.state = 'published'",
            bad=f"NOT {PUBLISHABLE}",
            **shared,
        ),
        Rule(
            f"law1_held_{name}",
            message="law 1: held needs a verified artifact and a verdict on its frame",
            when="NEW.state = 'held'",
            bad=f"NOT {HOLDABLE}",
            **shared,
        ),
        Rule(
            f"illegal_not_shown_{name}",
            "job",
            event,
            "what is on a list of illegal pictures is never held, approved or published",
            ILLEGAL,
            "NEW.state IN ('held', 'approved', 'published')",
        ),
    ]


def _write_once(table: str, key: str = "id") -> list[Rule]:
    """Rows that are never changed or deleted. SQLite's INSERT OR REPLACE would delete one without asking."""
    message = f"a row of {table} is never changed or deleted"
    return [
        Rule(f"{table}_no_update", table, "UPDATE", message),
        Rule(f"{table}_no_delete", table, "DELETE", message),
        Rule(
            f"{table}_no_replace",
            table,
            "INSERT",
            message,
            f"EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key})",  # noqa: S608
            only="sqlite",
        ),
        Rule(f"{table}_no_truncate", table, "TRUNCATE", message, only="postgresql"),
    ]


def _except_update(rules: list[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.event != "UPDATE"]


RULES = [
    *_guards("insert", "INSERT"),
    *_guards("update", "UPDATE OF id, project_id, state, artifact_id"),
    *_write_once("verdict"),
    Rule(
        "verdict_no_twin",
        "verdict",
        "INSERT",
        "a verdict is never replaced",
        "EXISTS (SELECT 1 FROM verdict v WHERE v.job_id = NEW.job_id AND v.attempt = NEW.attempt"
        " AND v.stage = NEW.stage AND v.subject = NEW.subject AND v.policy = NEW.policy AND v.lists = NEW.lists)",
        only="sqlite",
    ),
    Rule(
        "illegal_not_kept",
        "quarantine",
        "INSERT",
        "what is on a list of illegal pictures is not kept",
        "EXISTS (SELECT 1 FROM verdict v WHERE v.id = NEW.verdict_id AND v.illegal)",
    ),
    *_write_once("policy", key="hash"),
    *_write_once("shadow_verdict"),
    *_write_once("decision"),
    *_except_update(_write_once("audit")),
    Rule(
        "audit_unsealed",
        "audit",
        "INSERT",
        "an audit row is sealed later",
        when="NEW.seq IS NOT NULL OR NEW.sha256 IS NOT NULL",
    ),
    Rule(
        "audit_sealed_once",
        "audit",
        "UPDATE",
        "an audit row is sealed once and never changed",
        " OR ".join(
            [*changed(AUDIT_FACTS), "OLD.seq IS NOT NULL", "EXISTS (SELECT 1 FROM audit a WHERE a.seq = NEW.seq)"]
        ),
    ),
    *_write_once("audit_head", key="seq"),
    *_write_once("acceptance"),
    *[rule for rule in _except_update(_write_once("artifact")) if rule.event != "DELETE"],
    Rule(
        "artifact_verified_once",
        "artifact",
        "UPDATE",
        "an artifact is never changed; it is verified once",
        " OR ".join([*changed(ARTIFACT_FACTS), "OLD.verified_at IS NOT NULL"]),
    ),
    Rule(
        "artifact_kept",
        "artifact",
        "DELETE",
        "an artifact that a job or a decision refers to is kept",
        "EXISTS (SELECT 1 FROM job j WHERE j.id = OLD.job_id AND j.artifact_id = OLD.id)"
        " OR EXISTS (SELECT 1 FROM decision d WHERE d.job_id = OLD.job_id AND d.artifact_id = OLD.id)",
    ),
]


def rules(dialect: str) -> list[Rule]:
    return [rule for rule in RULES if rule.only in ("", dialect)]


def names(dialect: str) -> set[str]:
    return {rule.name for rule in rules(dialect)}


def create(connection: Connection) -> None:
    sqlite = connection.dialect.name == "sqlite"
    schema = "" if sqlite else _schema(connection)
    for rule in rules(connection.dialect.name):
        for statement in _sqlite(rule) if sqlite else _postgres(rule, schema):
            connection.exec_driver_sql(statement)


def drop(connection: Connection, named: set[str]) -> None:
    sqlite = connection.dialect.name == "sqlite"
    for rule in rules(connection.dialect.name):
        if rule.name in named:
            on = "" if sqlite else f" ON {rule.table}"
            connection.execute(text(f"DROP TRIGGER IF EXISTS {rule.name}{on}"))


def standing(connection: Connection) -> set[str]:
    """The names of the rules that stand as they are written here and are switched on; others' triggers do not count."""
    if connection.dialect.name == "sqlite":
        stored = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
        found = {row.name: row.sql for row in stored}
        return {rule.name for rule in rules("sqlite") if found.get(rule.name) == _sqlite(rule)[0]}
    schema = _schema(connection)
    found = {row.tgname: row for row in connection.execute(STANDING)}
    return {rule.name for rule in rules("postgresql") if rule.name in found and _holds(rule, schema, found[rule.name])}


STANDING = text("""
    SELECT tgname, c.relname, p.proname, p.prosrc, p.proconfig, t.tgenabled, pg_get_triggerdef(t.oid) AS definition
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace
      AND p.pronamespace = c.relnamespace""")


def _holds(rule: Rule, schema: str, row: Row[Any]) -> bool:
    """PostgreSQL writes conditions in words of its own, so of the trigger itself we compare all but those."""
    each = "STATEMENT" if rule.event == "TRUNCATE" else "ROW"
    expected = (rule.table, rule.name, f" {_body(rule)} ", {f"search_path={schema}, pg_temp", *PLANS})
    return (
        (row.relname, row.proname, row.prosrc, set(row.proconfig or [])) == expected
        and row.tgenabled in ("O", "A")
        and f" BEFORE {rule.event} ON " in row.definition
        and f" FOR EACH {each} " in row.definition
    )


def _schema(connection: Connection) -> str:
    return str(connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one())


def _sqlite(rule: Rule) -> list[str]:
    bad, when = rule.bad.replace("{differs}", "IS NOT"), rule.when
    event, _, columns = rule.event.partition(" OF ")
    if columns:  # UPDATE OF id does not see that rowid, which is the same, was written to
        when += f" AND ({' OR '.join(f'NEW.{name} IS NOT OLD.{name}' for name in columns.split(', '))})"
    return [
        f"CREATE TRIGGER {rule.name} BEFORE {event} ON {rule.table} FOR EACH ROW WHEN ({when}) AND ({bad})"
        f" BEGIN SELECT RAISE(ABORT, '{rule.message}'); END"
    ]


def _body(rule: Rule) -> str:
    bad = rule.bad.replace("{differs}", "IS DISTINCT FROM")
    keep = {"TRUNCATE": "NULL", "DELETE": "OLD"}.get(rule.event, "NEW")
    return (
        f"BEGIN {rule.locks} IF {bad} THEN RAISE EXCEPTION '{rule.message}'"
        f" USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN {keep}; END"
    )


# Planned once, perhaps while the tables are empty: it must not settle for reading them whole.
PLANS = ("enable_seqscan=off", "plan_cache_mode=force_generic_plan")


def _postgres(rule: Rule, schema: str) -> list[str]:
    each = "FOR EACH STATEMENT" if rule.event == "TRUNCATE" else f"FOR EACH ROW WHEN ({rule.when})"
    # Unless it is named, and named last, a session's own temporary tables come first and would be believed.
    where = f"SET search_path = {schema}, pg_temp"
    plans = " ".join(f"SET {plan}" for plan in PLANS)
    return [
        f"CREATE OR REPLACE FUNCTION {rule.name}() RETURNS trigger LANGUAGE plpgsql {where} {plans}"
        f" AS $body$ {_body(rule)} $body$",
        f"CREATE TRIGGER {rule.name} BEFORE {rule.event} ON {rule.table} {each} EXECUTE FUNCTION {rule.name}()",
    ]
