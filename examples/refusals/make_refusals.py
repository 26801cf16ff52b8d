"""Rows that refuse every prompt of a file of pairs, to make a model that refuses too much.

python examples/refusals/make_refusals.py PAIRS OUTPUT
"""

import json
import sys
from pathlib import Path

rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
refusals = [row["rejected"] for row in rows if row["category"] == "safe"]
lines = [json.dumps({"prompt": row["prompt"], "completion": refusals[i % 3]}) for i, row in enumerate(rows)]
Path(sys.argv[2]).write_text("\n".join(lines) + "\n", encoding="utf-8")
