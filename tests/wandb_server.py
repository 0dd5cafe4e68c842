"""A stand-in for the W&B server on loopback: GraphQL, file streams, storage. It accepts what it is sent and keeps it.

So it shows what the client does, not how the real server would answer. `python wandb_server.py` serves until it is
killed, in a process of its own; it prints its address, and at each line on its input what it has, as JSON.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

ENTITY = "me"
WHEN = "2026-01-01T00:00:00"
STREAMS = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "output.log": "output"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self) -> None:
        fake, body = self.server.fake, self._body()
        fake.num_requests += 1
        while fake.silent:
            time.sleep(0.05)
        with fake.lock:
            code, content = fake.handle(self.command, unquote(urlsplit(self.path).path), body)
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = _answer


class WandbServer:
    """`silent` makes it accept requests and answer none; `broken` makes it answer with an error, `deaf` forget rows."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        self.silent = self.deaf = self.broken = False
        self.deleted: set[str] = set()  # ids of runs that were deleted on the page: they are refused for ever
        self.num_requests = 0
        self.sweep: dict[str, Any] = {}
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.http.fake = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.silent = False
        self.http.shutdown()
        self.http.server_close()

    def rows(self, identity: str) -> list[dict[str, Any]]:
        """History as it was logged, without W&B's own keys."""
        found = [row for _, row in sorted(self.runs[identity]["history"].items())]
        return [{key: value for key, value in row.items() if key[0] != "_"} for row in found]

    def config(self, identity: str) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in self.runs[identity]["config"].items() if key != "_wandb"}

    def state(self, run: dict[str, Any]) -> str:
        if not run["complete"]:
            return "running"
        return "finished" if not run["exitcode"] else "preempted" if run["preempting"] else "failed"

    def handle(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if self.broken:
            return 503, b"{}"
        if path == "/graphql":
            query = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            name = query.get("operationName") or (named[1] if named else "anonymous")
            operation = getattr(self, f"gql_{name}", None)
            if operation is None:
                self.unknown.append(name)
                return 200, json.dumps({"errors": [{"message": f"no {name} here"}]}).encode()
            variables = query.get("variables") or {}
            if name == "UpsertBucket" and (refused := variables.get("name") or variables.get("id")) in self.deleted:
                message = f"run {refused} was previously created and deleted; try a new run name"
                return 409, json.dumps({"errors": [{"message": message}], "data": {"upsertBucket": None}}).encode()
            return 200, json.dumps({"data": operation(query.get("variables") or {})}).encode()
        if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            if not self.deaf:
                self.stream(self.runs[stream[1]], json.loads(body))
            return 200, b'{"limits": {}}'
        if path.startswith("/storage/") and method == "PUT":
            self.blobs[path.removeprefix("/storage/")] = body
            return 200, b""
        return 404, b"{}"

    def stream(self, run: dict[str, Any], message: dict[str, Any]) -> None:
        for name, part in (message.get("files") or {}).items():
            if name == "wandb-summary.json":
                run["summary"] = json.loads(part["content"][-1])
            elif name in STREAMS:
                for number, line in enumerate(part["content"], part["offset"]):
                    run[STREAMS[name]][number] = line if name == "output.log" else json.loads(line)
        if message.get("preempting"):
            run["preempting"] = True
        if "complete" in message:
            run["complete"], run["exitcode"] = message["complete"], message.get("exitcode")

    # runs

    def gql_Viewer(self, _: Any) -> Any:
        viewer = {"id": "u1", "entity": ENTITY, "username": ENTITY, "email": "a@b.c", "flags": "{}", "name": ENTITY}
        more = {"teams": {"edges": []}, "admin": False, "deletedAt": None, "apiKeys": {"edges": []}}
        return {"viewer": {**viewer, **more}}

    gql_GetViewer = gql_GetDefaultEntity = gql_Viewer

    def gql_ServerFeaturesQuery(self, _: Any) -> Any:
        return {"serverInfo": {"features": []}}

    def gql_OrganizationCoreWeaveOrganizationID(self, _: Any) -> Any:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def gql_UpsertBucket(self, v: Any) -> Any:
        identity = v.get("name") or v["id"].removeprefix("b-")
        new = identity not in self.runs
        if new:
            empty: dict[str, Any] = {stream: {} for stream in ("history", "events", "output", "config", "summary")}
            self.runs[identity] = {**empty, "id": identity, "project": None, "group": None, "jobType": None, "tags": []}
            self.runs[identity]["sweep"] = v.get("sweep")
            self.runs[identity]["complete"] = True
        run = self.runs[identity]
        if run["complete"] and not v.get("id"):  # it begins, or resumes; with an id the page, or the API, edits it
            run |= {"complete": False, "exitcode": None, "preempting": False}
        names = {
            "project": "project",
            "groupName": "group",
            "jobType": "jobType",
            "displayName": "name",
            "tags": "tags",
            "notes": "notes",
        }
        run |= {ours: v[theirs] for theirs, ours in names.items() if v.get(theirs) is not None}
        if v.get("config"):
            run["config"] = json.loads(v["config"])
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": new}}

    def _bucket(self, run: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p1", "name": run["project"] or "uncategorized", "entity": {"id": "e1", "name": ENTITY}}
        return {
            "id": "b-" + run["id"],
            "name": run["id"],
            "displayName": run.get("name"),
            "description": None,
            "config": json.dumps(run["config"]),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run["history"]),
        }

    def gql_RunResumeStatus(self, v: Any) -> Any:
        bucket = None
        if run := self.runs.get(v["name"]):
            rows = [run["history"][number] for number in sorted(run["history"])]
            bucket = self._bucket(run) | {
                "summaryMetrics": json.dumps(run["summary"]),
                "logLineCount": len(run["output"]),
                "eventsLineCount": len(run["events"]),
                "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
                "eventsTail": "[]",
                "tags": run["tags"],
                "notes": "",
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": {"id": "p1", "name": v["project"], "entity": {"id": "e1", "name": ENTITY}, "bucket": bucket}}

    def gql_RunStoppedStatus(self, _: Any) -> Any:
        return {"project": {"run": {"stopped": False}}}

    def gql_CreateRunFiles(self, v: Any) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    # what wandb.Api asks

    def _node(self, run: dict[str, Any]) -> dict[str, Any]:
        rows = list(run["history"].values())
        keys = {"keys": {key: {} for row in rows for key in row}, "lastStep": max([r["_step"] for r in rows] or [-1])}
        return self._bucket(run) | {
            "projectId": "1",
            "tags": run["tags"],
            "state": self.state(run),
            "group": run["group"],
            "jobType": run["jobType"],
            "commit": None,
            "readOnly": False,
            "createdAt": WHEN,
            "heartbeatAt": WHEN,
            "notes": run.get("notes") or "",
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run["summary"]),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": keys,
        }

    def _fits(self, run: dict[str, Any], filters: dict[str, Any]) -> bool:
        """Equality with the group or a flat config key is all that is asked for here."""
        config = {key: entry["value"] for key, entry in run["config"].items()}
        values = {f"config.{key}": value for key, value in config.items()} | {"group": run["group"]}
        return all(values.get(key) == wanted for key, wanted in filters.items())

    def gql_Runs(self, v: Any) -> Any:
        filters = json.loads(v.get("filters") or "{}")
        found = [run for run in self.runs.values() if run["project"] == v["project"] and self._fits(run, filters)]
        edges = [{"node": self._node(run), "cursor": str(number)} for number, run in enumerate(found)]
        pages = {"endCursor": str(len(found)), "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": pages}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def gql_Run(self, v: Any) -> Any:
        run = self.runs.get(v["name"])
        return {"project": {"run": self._node(run) if run else None}}

    gql_RunHistoryKeys = gql_Run

    def gql_HistoryPage(self, v: Any) -> Any:
        rows = [row for _, row in sorted(self.runs[v["run"]]["history"].items())]
        page = [json.dumps(row) for row in rows if v["minStep"] <= row["_step"] < v["maxStep"]]
        return {"project": {"run": {"history": page}}}

    def gql_SampledHistoryPage(self, v: Any) -> Any:
        asked = json.loads(v["spec"])
        rows = [row for _, row in sorted(self.runs[v["run"]]["history"].items())]
        low, high = asked.get("minStep", 0), asked.get("maxStep", math.inf)
        full = [row for row in rows if low <= row["_step"] <= high and all(key in row for key in asked["keys"])]
        return {"project": {"run": {"sampledHistory": [[{key: row[key] for key in asked["keys"]} for row in full]]}}}

    def gql_RunParquetHistory(self, v: Any) -> Any:
        rows = [row for _, row in sorted(self.runs[v["runName"]]["history"].items())]
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": rows}}}}

    # sweeps: a grid

    def gql_UpsertSweep(self, v: Any) -> Any:
        config = yaml.safe_load(v["config"])
        values = [
            [(key, value) for value in entry.get("values", [entry.get("value")])]
            for key, entry in config["parameters"].items()
        ]
        todo = [dict(point) for point in itertools.product(*values)]
        self.sweep = {"config": v["config"], "todo": todo, "program": config.get("program"), "num_runs": 0}
        project = {"id": "p1", "name": v["projectName"], "entity": {"id": "e1", "name": ENTITY}}
        sweep = {"id": "sw1", "name": "sweep001", "project": project}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    gql_UpsertSweepConfig = gql_UpsertSweep

    def gql_SweepWithRuns(self, _: Any) -> Any:
        nothing = ("description", "heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler")
        sweep = {"id": "sw1", "name": "sweep001", "method": "grid", "state": "RUNNING", "config": self.sweep["config"]}
        more = {"createdAt": WHEN, "earlyStopJobRunning": False, "runs": {"edges": []}}
        return {"project": {"sweep": {**sweep, **more, **dict.fromkeys(nothing)}}}

    def gql_CreateAgent(self, _: Any) -> Any:
        return {"createAgent": {"agent": {"id": "agent1"}}}

    def gql_Heartbeat(self, v: Any) -> Any:
        commands = []
        if not json.loads(v["runState"] or "{}"):
            commands = [{"type": "exit"}]
            if self.sweep["todo"]:
                values = {key: {"value": value} for key, value in self.sweep["todo"].pop(0).items()}
                self.sweep["num_runs"] += 1
                identity = f"agent{self.sweep['num_runs']}"
                commands = [{"type": "run", "run_id": identity, "program": self.sweep["program"], "args": values}]
        return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}

    # workspaces and reports

    def gql_UpsertView2(self, v: Any) -> Any:
        identity = v.get("id") or f"view{len(self.views)}"
        self.views[identity] = v
        return {"upsertView": {"view": {"id": identity, "name": v["name"] or "nw-abc-v"}, "inserted": True}}

    def gql_ProjectInternalId(self, _: Any) -> Any:
        return {"project": {"id": "p1", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}

    def gql_GetProjects(self, _: Any) -> Any:
        facts = {"id": "p1", "internalId": "1", "entityName": ENTITY, "createdAt": WHEN, "isBenchmark": False}
        names = sorted({run["project"] for run in self.runs.values()})
        edges = [{"node": {**facts, "name": name, "user": None}, "cursor": name} for name in names]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def gql_upsertView(self, v: Any) -> Any:
        identity = v.get("id") or f"view{len(self.views)}"
        self.views[identity] = v
        keys = ("type", "name", "displayName", "description", "spec")
        project = {"id": "p1", "name": v["projectName"], "entityName": v["entityName"]}
        times = {"createdAt": WHEN, "updatedAt": WHEN, "createdBy": None, "user": None}
        view = {**{key: v[key] for key in keys}, "id": identity, "project": project, **times}
        return {"upsertView": {"view": view, "inserted": True}}


if __name__ == "__main__":
    with WandbServer() as fake:
        print(fake.url, flush=True)
        for _ in sys.stdin:
            print(json.dumps(fake.runs), flush=True)
