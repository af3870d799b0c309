"""The frame of an HTML page: its style, light and dark, phone and desk, and a policy that forbids every request."""

from html import escape

_STYLE = """
:root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--ink:#1b2430;--soft:#5c6878;--line:#e2e6ec;--before:#9aa7b8;
--after:#0f766e;--wash:#d5ebe8;--good:#15803d;--bad:#b42318;--warn:#fff4d6;--warnline:#d99a00;--mark:#fde68a}
@media (prefers-color-scheme:dark){:root{--bg:#0e1318;--card:#161d25;--ink:#e5eaf1;--soft:#9aa7b6;--line:#2a333f;
--before:#64748b;--after:#2dd4bf;--wash:#173d3b;--good:#4ade80;--bad:#fb7f74;--warn:#3a2f10;--warnline:#d99a00;
--mark:#7a5d0b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:1.12rem;margin:0 0 12px}
h3{font-size:.95rem;margin:0 0 6px}
.soft,.facts{color:var(--soft)}
.facts{margin:0 0 20px;font-size:.93rem}
.facts span+span::before{content:"·";margin:0 .5em}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px;margin:0 0 18px}
.void{background:var(--warn);border-color:var(--warnline)}
.void p{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:14px;margin:0 0 18px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 18px}
.tile b{display:block;font-size:1.85rem;line-height:1.2;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile b small{font-size:1.05rem;color:var(--soft);font-weight:500}
.tile span{font-size:.88rem;color:var(--soft)}
.scroll{overflow-x:auto;margin:0 -20px;padding:0 20px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.93rem}
th,td{padding:8px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;font-size:.82rem;vertical-align:bottom}
tbody th{font-weight:500;text-align:left;white-space:normal;min-width:11rem}
th:first-child{text-align:left;padding-left:0}
tbody tr:last-child>*{border-bottom:0}
tr.strong>*{font-weight:700;background:var(--wash)}
tr.strong>th{border-radius:6px 0 0 6px;padding-left:8px}
tr.strong>td:last-child{border-radius:0 6px 6px 0}
td small{color:var(--soft);font-weight:400;margin-left:.35em}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:18px;margin:0 0 18px}
.two section{margin:0;min-width:0}
svg{display:block;width:100%;height:auto;overflow:visible;font:12px system-ui,sans-serif}
svg text{fill:var(--soft)}
svg .mid{text-anchor:middle}
svg .end{text-anchor:end}
svg .value{fill:var(--ink);font-weight:600}
svg .grid{stroke:var(--line)}
svg .line{fill:none;stroke-width:1.6;stroke-linejoin:round}
svg .line.s1{stroke-width:2.2}
svg .line.s0{stroke:var(--before)}
svg .line.s1{stroke:var(--after)}
.bar.s0,.dot.s0{fill:var(--before)}
.bar.s1,.dot.s1{fill:var(--after)}
.key{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:.4em}
.key.s0{background:var(--before)}
.key.s1{background:var(--after)}
.legend{margin:8px 0 0;font-size:.86rem;color:var(--soft);display:flex;flex-wrap:wrap;gap:4px 18px}
.hbar{display:grid;grid-template-columns:1fr auto;gap:3px 12px;padding:5px 0;font-size:.92rem}
.hbar .track{grid-column:1/-1;grid-row:2}
.track{position:relative;height:14px;background:var(--bg);border-radius:4px}
.track i{position:absolute;display:block}
.fill{top:0;bottom:0;background:var(--before);border-radius:4px}
.strong .fill{background:var(--after)}
.whisker{top:6px;height:2px;background:var(--ink)}
.whisker::before,.whisker::after{content:"";position:absolute;top:-3px;height:8px;width:2px;background:var(--ink)}
.whisker::before{left:0}
.whisker::after{right:0}
.zero{top:-3px;bottom:-3px;width:1px;background:var(--soft)}
.hbar .end{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.strong .name,.strong .end{font-weight:700}
.example{border-top:1px solid var(--line);padding:14px 0}
.example:first-of-type{border-top:0;padding-top:0}
.example:last-child{padding-bottom:0}
.example p,.example dl{margin:0 0 8px}
.example dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px}
.example dt{color:var(--soft)}
.example dd{margin:0;overflow-wrap:anywhere}
.right{color:var(--good);font-weight:600}
.wrong{color:var(--bad)}
blockquote{margin:0;padding:8px 14px;border-left:3px solid var(--after);background:var(--bg);border-radius:0 6px 6px 0;
font-size:.93rem;white-space:pre-line;overflow-wrap:anywhere}
blockquote footer{color:var(--soft);font-size:.84rem}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 .1em}
ul{margin:0;padding-left:1.2em}
dl.terms{margin:12px 0 0;font-size:.88rem;color:var(--soft)}
dl.terms dt{float:left;clear:left;font-weight:600;margin-right:.5em}
dl.terms dd{margin:0 0 3px}
@media (max-width:560px){
main{padding:20px 12px 40px}section{padding:16px}.scroll{margin:0 -16px;padding:0 16px}h1{font-size:1.4rem}}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""


def page(title: str, body: str) -> str:
  """A whole HTML document.

  Args:
    title: plain text, escaped here.
    body: HTML, in which every text is escaped already.

  Returns:
    The document. Its policy lets nothing be loaded or run, so that even a text that slipped through could not act.
  """
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
