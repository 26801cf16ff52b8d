"""What the data view asks for: rows that pass a filter, changes to them, import and export."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mlx_dpo.errors import UserError
from mlx_dpo.web.json_requests import json_response, read_json
from mlx_dpo.web.row_changes import RowAddress, RowChanges
from mlx_dpo.web.row_editing import can_swap, edit_line, editable_fields, swap_line
from mlx_dpo.web.row_import import pasted_suffix, read_import
from mlx_dpo.web.row_index import ListedRow, RowFilter, RowIndex
from mlx_dpo.web.stored_row import LABEL, PREFERENCE, TIE, line_digest
from mlx_dpo.web.verdicts import VerdictFiles

MAX_ROWS = 200  # in one response
MAX_IMPORT_BYTES = 1 << 29
PASTED = "pasted text"
EXPORTS = {"pairs": ((PREFERENCE, TIE), ""), "labels": ((LABEL,), ".labels")}  # kinds of rows, and part of a name


class RowRoutes:
    """The rows of the files of verdicts, for the data view."""

    def __init__(self, verdicts: VerdictFiles) -> None:
        """Join the parts.

        Args:
            verdicts: the files.
        """
        self.index = RowIndex(verdicts)
        self.changes = RowChanges(self.index.files)
        self._stem = verdicts.preferences.path.stem

    def routes(self) -> list[Route]:
        """The routes, all below /api/rows."""
        return [
            Route("/api/rows", self.list_rows),
            Route("/api/rows/summary", self.summary),
            Route("/api/rows/row", self.show_row),
            Route("/api/rows/export/{examples}", self.export),
            Route("/api/rows/edit", self.edit, methods=["POST"]),
            Route("/api/rows/swap", self.swap, methods=["POST"]),
            Route("/api/rows/delete", self.delete, methods=["POST"]),
            Route("/api/rows/undo", self.undo, methods=["POST"]),
            Route("/api/rows/import", self.import_rows, methods=["POST"]),
        ]

    async def list_rows(self, request: Request) -> Response:
        """A slice of the rows that pass the filter of the address: `count` of them from `start`."""
        conditions = RowFilter.from_query(request.query_params)
        start, count = _integer(request, "start", 0), min(_integer(request, "count", MAX_ROWS), MAX_ROWS)
        version, rows = await run_in_threadpool(self.index.rows, conditions)
        listed = [_row_json(row) for row in rows[start : start + count]]
        return json_response({"version": version, "matching": len(rows), "start": start, "rows": listed})

    async def summary(self, request: Request) -> Response:
        """Counts of all rows, and the agreement of verdicts on what was shown twice."""
        return json_response(await run_in_threadpool(self.index.summary))

    async def show_row(self, request: Request) -> Response:
        """A row to edit: its fields in full, and what can be done to it."""
        query = request.query_params
        place = {"file": query.get("file"), "line": _integer(request, "line", 0), "digest": query.get("digest")}
        address = RowAddress.from_json(place, self.index.files)
        _, rows = await run_in_threadpool(self.index.rows)
        own = [row for row in rows if row.file == address.file]
        listed = own[address.find_row([(row.line, row.row.digest) for row in own])]
        line = listed.row.line
        return json_response({**_row_json(listed), "fields": editable_fields(line), "can_swap": can_swap(line)})

    async def edit(self, request: Request) -> Response:
        """Change the fields of a row."""
        body = await read_json(request)
        return await self._change(body, lambda line: edit_line(line, body.get("fields")))

    async def swap(self, request: Request) -> Response:
        """Exchange chosen and rejected."""
        return await self._change(await read_json(request), swap_line)

    async def _change(self, body: dict[str, Any], change: Callable[[bytes], bytes]) -> Response:
        address = RowAddress.from_json(body.get("row"), self.index.files)
        change_id, changed = await run_in_threadpool(self.changes.edit, address, change)
        digest = line_digest(changed.after or b"")
        return json_response({"undo": change_id, "row": {"file": changed.file, "line": changed.line, "digest": digest}})

    async def delete(self, request: Request) -> Response:
        """Delete a row."""
        address = RowAddress.from_json((await read_json(request)).get("row"), self.index.files)
        return json_response({"undo": await run_in_threadpool(self.changes.delete, address)})

    async def undo(self, request: Request) -> Response:
        """Take a change back."""
        await run_in_threadpool(self.changes.undo, str((await read_json(request)).get("id")))
        return json_response({"undone": True})

    async def import_rows(self, request: Request) -> Response:
        """Append the valid rows of the request's body, a file with the `name` of the address or a pasted text."""
        with tempfile.TemporaryDirectory() as folder:
            upload = Path(folder) / "upload"
            with upload.open("wb") as stream:
                size = 0
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > MAX_IMPORT_BYTES:
                        raise UserError(f"is larger than {MAX_IMPORT_BYTES >> 20} MB", field="file")
                    stream.write(chunk)
            return json_response(await run_in_threadpool(self._import, upload, request.query_params.get("name", "")))

    def _import(self, upload: Path, name: str) -> dict[str, Any]:
        if not name:
            with upload.open("rb") as stream:
                name = f"{PASTED}{pasted_suffix(stream.read(1 << 16))}"
        suffix = re.sub(r"[^A-Za-z0-9.]", "", "".join(Path(name).suffixes[-2:]))[-20:]
        imported = read_import(upload.rename(upload.with_name(f"upload{suffix}")), name)
        change_id = self.changes.append(imported.lines)
        return {
            "undo": change_id,
            "added": {file: len(lines) for file, lines in imported.lines.items()},
            "num_bad": imported.num_bad,
            "problems": imported.problems,
        }

    async def export(self, request: Request) -> Response:
        """The lines of the pairs, ties among them, or of the labels that pass the filter of the address, as a file.

        `train` takes a file of the ones or of the others, and none with rows that can't be used.
        """
        examples = request.path_params["examples"]
        if examples not in EXPORTS:
            raise UserError(f"must be one of {', '.join(EXPORTS)}", field="examples")
        kinds, name_part = EXPORTS[examples]
        conditions = RowFilter.from_query(request.query_params)
        _, listed = await run_in_threadpool(self.index.rows, conditions)
        rows = [row for row in listed if row.row.kind in kinds]

        def lines() -> Iterator[bytes]:
            for start in range(0, len(rows), MAX_ROWS):
                yield b"".join(row.row.line.rstrip(b"\r\n") + b"\n" for row in rows[start : start + MAX_ROWS])

        stem = re.sub(r"[^A-Za-z0-9._-]", "_", self._stem)
        headers = {"Content-Disposition": f'attachment; filename="{stem}.exported{name_part}.jsonl"'}
        return StreamingResponse(lines(), media_type="application/jsonl", headers=headers)


def _row_json(listed: ListedRow) -> dict[str, Any]:
    row = listed.row
    return {
        "file": listed.file,
        "line": listed.line,
        "digest": row.digest,
        "kind": row.kind,
        "labeller": row.labeller,
        "edited": row.is_edited,
        "copies": listed.copies,
        "warnings": listed.warnings(),
        "prompt": row.prompt,
        "completions": [{"role": role, "text": text} for role, text in row.completions],
    }


def _integer(request: Request, name: str, default: int) -> int:
    try:
        value = int(request.query_params.get(name, default))
    except ValueError:
        value = -1
    if value < 0:
        raise UserError("must be a whole number", field=name)
    return value
