"""How an HTML report looks: light and dark by the reader's setting, black on white on paper."""

from string import Template

DASHES = ("none", "9 4", "2 3", "12 4 2 4", "5 3", "14 3", "1 4", "8 3 2 3 2 3")
LIGHT = ("#005a9c", "#b34700", "#1b6e3c", "#8a2f8f", "#7a5c00", "#9e1b32", "#00696b", "#444444")
DARK = ("#7cc4ff", "#ffab70", "#7fdc9f", "#e5a3ea", "#e8cc5c", "#ff9aa8", "#6fdada", "#c9d1d9")


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f"--s{index}:{colour};" for index, colour in enumerate(colours))


BASE = """
:root{color-scheme:light dark;--back:#fff;--text:#1a1d21;--soft:#535b66;--edge:#c5ccd4;--card:#f5f7f9;
--good:#1b6e3c;--bad:#a3161f;--link:#0a58a6;$light}
@media (prefers-color-scheme:dark){:root{--back:#14171b;--text:#e8ebee;--soft:#a5afba;--edge:#434b55;--card:#1e2329;
--good:#7fdc9f;--bad:#ff9a9a;--link:#7cc4ff;$dark}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI","Noto Sans","DejaVu Sans",sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.1rem;margin:0 0 .75rem;color:var(--soft);font-weight:600}
h2{font-size:1.35rem;margin:2.5rem 0 .75rem;padding-top:.5rem;border-top:2px solid var(--edge);overflow-wrap:anywhere}
h3{font-size:1.02rem;margin:0 0 .5rem}
a{color:var(--link)}
.whole{white-space:nowrap}
.lead{border:1px solid var(--edge);border-left:.5rem solid var(--good);background:var(--card);padding:1rem 1.25rem}
.lead.bad{border-left:.5rem double var(--bad)}
.lead p{font-size:1.3rem;line-height:1.45;margin:.5rem 0}
.lead.bad p:first-child::first-line{font-weight:700}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1rem;margin:1rem 0}
.list{border:2px solid var(--edge);padding:.9rem 1.1rem;background:var(--card)}
.list.warning{border-color:var(--bad);border-style:dashed}
.list.warning h3{color:var(--bad)}
.list ul{margin:0;padding-left:1.2rem}
.list li{margin:.3rem 0}
dl{display:grid;grid-template-columns:minmax(8rem,13rem) 1fr;gap:.35rem 1rem;margin:1rem 0}
dt{color:var(--soft);font-weight:600}
dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;white-space:nowrap;font-weight:600;padding:.25rem 0 .4rem}
th,td{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--edge);
overflow-wrap:break-word;max-width:30rem}
thead th{border-bottom:2px solid var(--text);vertical-align:bottom}
tbody th{font-weight:600;overflow-wrap:anywhere;max-width:16rem}
tbody th:not(.number){min-width:7rem}
.wide{min-width:16rem}
.number{text-align:right;font-variant-numeric:tabular-nums}
details{margin:1rem 0}
summary{cursor:pointer;font-weight:600}
details caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
figure{margin:1.25rem 0}
figcaption{color:var(--soft);font-size:.92rem;margin-bottom:.4rem}
figcaption strong{color:var(--text)}
svg{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
svg text{fill:var(--text)}
.grid{stroke:var(--edge);stroke-width:1}
.axis{stroke:var(--text);stroke-width:1}
.leader{stroke:var(--soft);stroke-width:.75}
.curve{fill:none;stroke-width:2}
.mark{stroke:var(--back);stroke-width:.75}
.limit{fill:none;stroke:var(--text);stroke-width:1}
.used{fill:var(--s0)}
$curves
@media screen and (max-width:44rem){svg{min-width:38rem}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}.lead p{font-size:1.12rem}}
"""

PRINT = """
@page{size:A4;margin:16mm 14mm}
@media print{
:root{color-scheme:light;--back:#fff;--text:#000;--soft:#333;--edge:#888;--card:#fff;--good:#000;--bad:#000;--link:#000;
$light}
body{font-size:10pt}
main{max-width:none;padding:0}
h2,h3,caption,summary{break-after:avoid}
figure,.short,.list li,tr,dt,dd{break-inside:avoid}
thead{display:table-header-group}
.client{break-before:page}
.scroll{overflow:visible}
.list{font-size:9pt}
.lead p{font-size:14pt}
a{text-decoration:none}
summary{list-style:none}
details::details-content{content-visibility:visible;block-size:auto;display:block}
.used,.curve,.mark{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""


def _style() -> str:
    curves = "\n".join(
        f".curve.s{index}{{stroke:var(--s{index});stroke-dasharray:{dash}}}.mark.s{index},svg .label.s{index}"
        f"{{fill:var(--s{index})}}"
        for index, dash in enumerate(DASHES)
    )
    return Template(BASE + PRINT).substitute(light=_colours(LIGHT), dark=_colours(DARK), curves=curves)


STYLE = _style()
