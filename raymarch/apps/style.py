"""The look of the report page, light and dark."""

STYLE = """
:root {
  --paper: #fbfbf9; --card: #ffffff; --ink: #1c1f23; --soft: #61676f; --line: #dfe1df; --grid: #ececea;
  --good: #1f7a4d; --bad: #b3362b;
  --c0: #1f6fb2; --c1: #c2571a; --c2: #3f8f5f; --c3: #8a4fa3; --c4: #96790c; --c5: #5c6670;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --card: #1d2024; --ink: #e6e7e6; --soft: #9aa1a9; --line: #33383d; --grid: #282c31;
    --good: #5fc28f; --bad: #ef8177;
    --c0: #6db1ec; --c1: #ef955c; --c2: #72c795; --c3: #c894de; --c4: #d3b74a; --c5: #a7b0b9;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 44px 0 10px; padding-top: 14px; font-weight: 650;
  border-top: 1px solid var(--line); }
h3 { font-size: 13px; margin: 18px 0 6px; font-weight: 600; color: var(--soft); }
p { margin: 0 0 10px; max-width: 72ch; }
.lead, .note { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px;
  margin: 20px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; }
.tile dt { font-size: 12.5px; color: var(--soft); line-height: 1.3; }
.tile dd { margin: 3px 0 0; font-size: 20px; font-weight: 620; font-variant-numeric: tabular-nums; }
.tile dd + dd { font-size: 12.5px; font-weight: 500; margin-top: 1px; }
.met dd + dd, td.met { color: var(--good); }
.missed dd + dd, td.missed { color: var(--bad); }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 6px 18px 6px 0;
  border-bottom: 1px solid var(--line); }
thead th { font-size: 12.5px; color: var(--soft); font-weight: 500; }
tbody th { font-weight: 550; }
td.value, td.goal { white-space: nowrap; }
td.definition { color: var(--soft); padding-right: 0; }
.metrics { width: 100%; }
.facts td { color: var(--soft); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.row { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 3px; image-rendering: pixelated;
  background: var(--grid); }
figcaption { font-size: 12px; color: var(--soft); margin-top: 3px; line-height: 1.3; }
.legends { display: flex; flex-wrap: wrap; gap: 10px 36px; margin: 4px 0 8px; }
.legend { width: 260px; max-width: 100%; font-size: 12px; color: var(--soft); }
.legend .strip { display: block; height: 9px; border-radius: 2px; margin: 3px 0 2px; }
.legend .ends { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.chart { display: block; width: 100%; max-width: 720px; height: auto; }
.pair-of-charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 20px; margin-top: 14px; }
.pair-of-charts .chart text { font-size: 15px; }
.chart text { font-size: 13px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--grid); }
.chart .axis, .chart .mark { stroke: var(--soft); stroke-width: 1; }
.chart .pair { stroke: var(--line); stroke-width: 1.5; }
.chart .median { stroke-dasharray: 4 4; opacity: 0.75; }
.chart .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .c0 { --own: var(--c0); } .chart .c1 { --own: var(--c1); } .chart .c2 { --own: var(--c2); }
.chart .c3 { --own: var(--c3); } .chart .c4 { --own: var(--c4); } .chart .c5 { --own: var(--c5); }
.chart .curve, .chart .median { stroke: var(--own); }
.chart .dot, .chart .name { fill: var(--own); }
.chart .name { font-weight: 600; }
.chart .roof { fill: none; stroke: var(--soft); stroke-width: 1.8; }
.chart .seen { fill-opacity: 0.55; stroke: var(--own); }
.chart .box { fill: var(--card); stroke: var(--line); }
.chart .part { fill: var(--own); fill-opacity: 0.8; }
.chart .flow { stroke: var(--soft); stroke-width: 1.5; fill: none; }
.chart .head { fill: var(--ink); font-weight: 620; }
.chart text.small { font-size: 11.5px; }
.chart .number { font-size: 10px; fill: var(--ink); font-weight: 620; }
.wide { max-width: 1080px; }
.roofed { max-width: 1000px; }
@media (max-width: 640px) {
  main { padding: 20px 14px 48px; }
  .metrics thead { display: none; }
  .metrics tr { display: grid; grid-template-columns: 1fr auto auto; gap: 0 12px; padding: 8px 0;
    border-bottom: 1px solid var(--line); }
  .metrics th, .metrics td { border: 0; padding: 0; }
  .metrics td.definition { grid-column: 1 / -1; font-size: 13px; }
  .chart text { font-size: 17px; }
  .row { --least: 96px !important; }
}
@media print { body { background: #fff; } h2, figure { break-inside: avoid; } }
"""
