"""The curves of `python -m bench.poses` rows as one SVG picture.

python -m bench.pose_chart docs/poses.svg rotation_deg "from 2 deg=A.json" "from 5 deg=B.json"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from raymarch.apps.charts import Series, line_chart

LABELS = {
    "rotation_deg": "median rotation error, degrees",
    "translation_percent": "median translation error, %",
}
COLOURS = ("#0b6e99", "#c2571a", "#4a7c2c", "#8a3ffc", "#a11d33", "#555555")
STYLE = (
    "<style>text{font:12px sans-serif;fill:#444}line,path{stroke:#ccc}.curve{fill:none;stroke-width:2}"
    + "".join(f"polyline.c{i}{{stroke:{c}}}text.name.c{i}{{fill:{c}}}" for i, c in enumerate(COLOURS))
    + "</style>"
)


def chart(quantity: str, rows: list[str]) -> str:
    """One curve for every `name=file`; the file is what a row of bench.poses wrote."""
    series = []
    for row in rows:
        name, _, file = row.partition("=")
        curve = json.loads(Path(file).read_text())["curve"]
        series.append(Series(name, [p["step"] for p in curve], [p[quantity] for p in curve]))
    picture = line_chart(series, "step", LABELS[quantity])
    end = picture.index(">") + 1
    opening = picture[:end].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return opening + '<rect width="100%" height="100%" fill="white"/>' + STYLE + picture[end:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("quantity", choices=list(LABELS))
    parser.add_argument("rows", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    args.out.write_text(chart(args.quantity, args.rows) + "\n")


if __name__ == "__main__":
    main()
