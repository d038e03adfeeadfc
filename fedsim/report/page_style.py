"""The style sheet of a report: one column on a phone, more on a desk, and a dark side."""

CSS = """
:root { color-scheme: light dark; --ink: #22272e; --soft: #5d6773; --paper: #ffffff; --ground: #f4f5f7;
  --edge: #dfe3e8; --link: #0b62a8; --shade: #8a94a0;
  --line-0: #0072b2; --line-1: #d55e00; --line-2: #009e73; --line-3: #cc79a7;
  --line-4: #e69f00; --line-5: #5b4ea3; --line-6: #8fb339; --line-7: #777777; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #a3adb8; --paper: #171b20; --ground: #0f1216; --edge: #2e353d; --link: #7cc0ff;
    --shade: #79838f;
    --line-0: #56b4e9; --line-1: #ff8c42; --line-2: #35d09f; --line-3: #f0a3cd; --line-4: #ffc650; --line-5: #ab9ff2;
    --line-6: #bddf6f; --line-7: #a0a0a0; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; color: var(--ink); background: var(--ground);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 1.75rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 48rem; }
p, dd { overflow-wrap: anywhere; }
a { color: var(--link); }
.soft, figcaption, .files, dt, caption { color: var(--soft); }
.soft, figcaption, caption { font-size: .875rem; }
.status { display: inline-block; padding: .1rem .6rem; border: 1px solid var(--edge); border-radius: 1rem;
  background: var(--paper); font-size: .875rem; }
.status.going { border-color: var(--line-1); }
.cards { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); margin: 1rem 0; }
.cards div { padding: .6rem .8rem; border: 1px solid var(--edge); border-radius: .5rem; background: var(--paper); }
.cards dt { font-size: .8rem; line-height: 1.25; }
.cards dd { margin: .15rem 0 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); }
figure { margin: 0; padding: .75rem; border: 1px solid var(--edge); border-radius: .5rem; background: var(--paper);
  min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin-top: .4rem; }
figcaption b { color: var(--ink); }
.how { flex: 0 0 100%; margin-top: .2rem; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
figure svg, figure img { display: block; width: 100%; height: auto; max-height: 34rem; margin: 0 auto; }
figure.wide svg, figure.wide img { min-width: 40rem; }
img.paper { background: #ffffff; border-radius: .25rem; }
svg text { fill: currentColor; }
.table { margin: .5rem 0 1rem; border: 1px solid var(--edge); border-radius: .5rem; background: var(--paper); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--edge); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
#comparison { font-size: .82rem; }
#comparison th, #comparison td { padding: .35rem .4rem; }
#comparison thead th { white-space: normal; }
#comparison td:nth-child(3), #comparison td:nth-child(5) { white-space: normal; min-width: 7.5rem; }
.table.scroll { background: linear-gradient(to right, var(--paper) 60%, transparent) 0 / 1.5rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 60%, transparent) 100% / 1.5rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) 100% / .9rem 100% no-repeat scroll, var(--paper); }
.hint { display: none; margin-top: -.75rem; }
details { margin: .75rem 0; border: 1px solid var(--edge); border-radius: .5rem; padding: 0 .9rem; }
summary { padding: .6rem 0; cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
summary .soft { font-weight: 400; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.4; padding-bottom: .5rem; }
footer { margin-top: 2rem; }
@media (max-width: 48rem) { .table:has(th:nth-child(6)) + .hint { display: block; } }
@media (max-width: 74rem) { .table:has(th:nth-child(12)) + .hint { display: block; } }
@media (max-width: 30rem) { body { padding: .75rem; } th, td { padding: .35rem .5rem; } figure { padding: .5rem; } }
@media print {
  :root { color-scheme: light; --ink: #000000; --soft: #444444; --paper: #ffffff; --ground: #ffffff; --edge: #bbbbbb; }
  body { max-width: none; padding: 0; background: #ffffff; font-size: .8rem; }
  figure, .table, .cards div { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; }
  #comparison { font-size: .5rem; }
  #comparison th, #comparison td { padding: .15rem; min-width: 0 !important; }
  #comparison td { white-space: nowrap !important; letter-spacing: -.02em; }
  #comparison td:nth-child(3) { white-space: normal !important; }
  .hint, .files { display: none !important; }
}
"""
