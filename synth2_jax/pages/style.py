"""The style sheet of the report: narrow and wide windows, light and dark."""

# Arms in blue and orange, verdicts in green and magenta: after Okabe and Ito, so that colour-blind
# readers tell them apart.
STYLE = """
:root{--paper:#fff;--panel:#f6f7f8;--rule:#d9dde1;--ink:#1a1d21;--soft:#59626c;--neutral:#7a8793;
 --c0:#0072b2;--c1:#e69f00;--c2:#009e73;--c3:#cc79a7;--c4:#7d6bb8;--c5:#6f6f6f;--t0:#00609a;--t1:#8f5a00;
 --right:#00704f;--wrong:#a02c68;--notice:#fff3d6;--notice-rule:#e69f00}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--panel:#1d2125;--rule:#363c43;
 --ink:#e8eaed;--soft:#a3acb6;--neutral:#8793a0;--c0:#4a9fdc;--c1:#f0b43c;--c2:#2fc598;
 --c3:#e09cc3;--c4:#a597e0;--c5:#a8a8a8;--t0:#7dbdec;--t1:#f0b43c;--right:#4fd0a5;--wrong:#f08fc0;
 --notice:#3a2f14;--notice-rule:#f0b43c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:64rem;padding:1.5rem 1.25rem 3rem;background:var(--paper);
 color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
 sans-serif;overflow-wrap:break-word}
h1{font-size:clamp(1.5rem,1.1rem + 2vw,2.2rem);line-height:1.2;margin:.2rem 0 1rem;
 letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .75rem}
section{border-top:1px solid var(--rule);margin-top:2.25rem;padding-top:1.5rem}
section>p{max-width:46rem;margin:0 0 1rem}
.kicker,.fine,.sub,figcaption,footer,.none{color:var(--soft);font-size:.875rem}
.kicker{margin:0}
.fine{max-width:46rem;margin:.75rem 0 0}
.none{font-style:italic}
.answer{font-size:clamp(1.1rem,1rem + .6vw,1.35rem);line-height:1.45;max-width:48rem;margin:0;
 border-left:4px solid var(--neutral);padding-left:1rem}
.notice{background:var(--notice);border:1px solid var(--notice-rule);border-radius:6px;
 padding:.6rem .9rem;max-width:46rem}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin:1.75rem 0 1.25rem}
.tile{background:var(--panel);border-radius:8px;padding:.75rem .9rem;
 border-top:3px solid transparent}
.tile.arm0{border-color:var(--c0)}
.tile.arm1{border-color:var(--c1)}
.tile dt{font-size:.82rem;color:var(--soft);line-height:1.3}
.tile dd{margin:.15rem 0 0;font-size:1.6rem;line-height:1.2;font-weight:650;
 font-variant-numeric:tabular-nums}
.tile dd.sub{font-size:.78rem;font-weight:400;line-height:1.35}
.tiny dd:not(.sub){color:var(--soft);font-weight:400}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;font-size:.875rem}
a{color:var(--t0);text-underline-offset:.15em}
figure{margin:0 0 1.25rem;max-width:34rem}
figure:has(.multiples){max-width:none}
figcaption{margin-top:.5rem}
svg{max-width:100%;overflow:visible}
figure>svg,.multiples svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px;font-family:inherit}
svg .strong{fill:var(--ink);font-weight:600}
svg .value,svg .halo{fill:var(--ink)}
svg .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.grid,.axis{stroke:var(--rule);fill:none}
.axis{stroke:var(--neutral)}
.plain{stroke:var(--ink);stroke-width:1.4;fill:none}
.level{stroke:var(--ink);stroke-width:1.3;stroke-dasharray:6 4;fill:none}
.crossing{stroke:var(--ink);stroke-width:1.3;stroke-dasharray:1.5 3;fill:none}
.line0,.line1,.line2,.line3,.line4,.line5{fill:none;stroke-width:2}
.line0{stroke:var(--c0)}
.line1{stroke:var(--c1)}
.line2{stroke:var(--c2)}
.line3{stroke:var(--c3)}
.line4{stroke:var(--c4)}
.line5{stroke:var(--c5)}
.fill0{fill:var(--c0)}
.fill1{fill:var(--c1)}
.fill2{fill:var(--c2)}
.fill3{fill:var(--c3)}
.fill4{fill:var(--c4)}
.fill5{fill:var(--c5)}
svg .ink0{fill:var(--t0)}
svg .ink1{fill:var(--t1)}
.box{fill:var(--panel);stroke:var(--neutral)}
.box0{stroke:var(--c0);stroke-width:1.6}
.box1{stroke:var(--c1);stroke-width:1.6}
.arrow{stroke:var(--neutral);stroke-width:1.4;fill:none}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin:0 0 .5rem;font-size:.875rem}
.legend svg{vertical-align:-1px}
.how{display:grid;grid-template-columns:1fr minmax(0,25rem);gap:1rem 2.5rem;align-items:start}
.how ol{margin:0;padding-left:1.2rem}
.how li{margin-bottom:.75rem}
.cards,.pairs{list-style:none;margin:0;padding:0;display:grid;gap:.75rem}
.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr))}
.pairs{grid-template-columns:repeat(auto-fill,minmax(11rem,1fr))}
.card{display:flex;gap:.9rem;background:var(--panel);border-radius:8px;padding:.75rem;
 align-items:flex-start}
.card>div{min-width:0;flex:1}
.card p{margin:0 0 .35rem;line-height:1.4}
.caption{font-family:Charter,"Iowan Old Style",Georgia,"Times New Roman",serif}
.picture{width:96px;height:96px;flex:none;display:block;border-radius:3px;
 image-rendering:pixelated;outline:1px solid var(--rule)}
.picture.missing{display:grid;place-items:center;background:var(--panel);color:var(--soft)}
.pair{display:flex;align-items:center;gap:.4rem;margin-bottom:.25rem}
.pair .picture{width:80px;height:80px}
.marks{display:flex;flex-wrap:wrap;gap:.1rem .8rem}
.marks:empty{display:none}
.mark{font-size:.85rem;color:var(--soft);white-space:nowrap}
.mark.right{color:var(--right)}
.mark.wrong{color:var(--wrong)}
.tag{font-size:.78rem;border:1px solid var(--neutral);border-radius:99px;padding:0 .5rem;
 color:var(--soft);white-space:nowrap}
.said{margin:0}
.said dt{font-size:.8rem;line-height:1.3;padding-left:.5rem;border-left:3px solid transparent}
.said dt.arm0{border-color:var(--c0)}
.said dt.arm1{border-color:var(--c1)}
.said dt.arm2{border-color:var(--c2)}
.said dt.arm3{border-color:var(--c3)}
.said dt.arm4{border-color:var(--c4)}
.said dt.arm5{border-color:var(--c5)}
.said dd{margin:0 0 .45rem;padding-left:calc(.5rem + 3px);line-height:1.4}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
th,td{padding:.35rem .9rem .35rem 0;text-align:left;vertical-align:top;
 border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:500}
tbody th,.bars th,.settings th{font-weight:400}
.n{text-align:right;white-space:nowrap}
.bars{width:100%;max-width:40rem}
.bars th{white-space:nowrap}
.bars th,.bars td{border:0;vertical-align:middle}
.wide{width:100%}
.measure{min-width:8.5rem}
.track{display:block;height:.7rem;min-width:3rem}
.bar{display:block;height:100%;background:var(--neutral);border-radius:2px}
.measure .track{height:.4rem}
.multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem 1.5rem}
.multiples p{margin:0 0 .25rem;font-size:.875rem}
code{font:.82rem/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.settings td{overflow-wrap:anywhere}
summary{cursor:pointer;margin:1rem 0 .5rem}
footer{border-top:1px solid var(--rule);margin-top:2.5rem;padding-top:1rem}
@media (max-width:44rem){body{padding:1rem 1rem 2rem}
.tiles{grid-template-columns:repeat(2,1fr);gap:.5rem}
.how{grid-template-columns:minmax(0,1fr)}
.pairs,.multiples{grid-template-columns:repeat(2,minmax(0,1fr))}
.pair .picture{width:72px;height:72px}
.measure{min-width:5.5rem}}
"""
