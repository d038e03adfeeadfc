"""What the page is made of, as templates that escape every string but those that they made themselves."""

from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from fedsim.report.page_style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may do for the page: use the styles and images that are inside."""
PARTS = {
    "page": """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{{ policy }}">\
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\
<title>{{ title }} · fedsim</title><style>{{ css }}</style></head>
<body><header><h1>{{ title }}</h1>{% if about %}<p class="soft">{{ about }}</p>{% endif %}</header>\
<main>{{ body }}</main>\
<footer class="soft">fedsim. This page is complete: it loads nothing from elsewhere.</footer></body></html>
""",
    "run": """\
<p><span class="status{{ '' if is_finished else ' going' }}">{{ status }}</span>\
 <span class="soft">{{ facts }}</span></p>
<dl class="cards">{% for title, text, value in cards %}<div><dt>{{ title }}</dt><dd>\
{% if value is none %}{{ text }}{% else %}<data value="{{ value }}">{{ text }}</data>{% endif %}\
</dd></div>{% endfor %}</dl>
{{ split }}{% for line in found %}<p>{{ line }}.</p>{% endfor %}
{% for section in sections %}{{ section }}{% endfor %}
<details><summary>Recipe, as resolved</summary><pre>{{ recipe }}</pre></details>""",
    "folded": """\
<details><summary>{{ name }} <span class="soft">{{ status }}</span></summary>{{ body }}</details>""",
    "section": """\
<section><h2>{{ title }}</h2>{% if figures %}<div class="figures">{% for part in figures %}{{ part }}{% endfor %}</div>\
{% endif %}{% for part in tables %}{{ part }}{% endfor %}{% for line in remarks %}<p class="soft">{{ line }}</p>\
{% endfor %}</section>""",
    "several": """\
{% for line in going %}<p><span class="status going">{{ line }}</span></p>
{% endfor %}{% for section in sections %}{{ section }}
{% endfor %}<h2>Every run</h2>""",
    "figure": """\
<figure class="{{ 'wide' if picture.is_wide else 'narrow' }}"><div class="scroll">{{ drawn }}</div>\
<figcaption>{{ picture.title }}{% if files and picture.pdf %} <span class="files">\
{% for kind in ('pdf', 'svg') %}{{ '' if loop.first else ' · ' }}\
<a href="{{ files | urlencode }}/{{ picture.name }}.{{ kind }}">{{ kind | upper }}</a>{% endfor %}</span>{% endif %}\
{% if picture.how %}<span class="how">How to read this: {{ picture.how }}</span>{% endif %}</figcaption></figure>""",
    "image": """<img class="paper" alt="{{ words }}" src="data:image/svg+xml;base64,{{ data }}">""",
    "sheet": """\
<div class="table scroll" tabindex="0" role="region" aria-label="Table: {{ header[0] }}, {{ name }}">\
<table id="{{ name }}"><thead><tr>\
{% for title in header %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead><tbody>\
{% for row in rows %}<tr>{% for shown, value in row %}{% if loop.first %}<th scope="row">{{ shown }}</th>{% else %}\
<td>{% if value is none %}{{ shown }}{% else %}<data value="{{ value }}">{{ shown }}</data>{% endif %}</td>{% endif %}\
{% endfor %}</tr>{% endfor %}</tbody></table></div>\
<p class="soft hint">↔ Where the table is cut at the right, scroll or swipe it.</p>""",
}
_PAGES = Environment(loader=DictLoader(PARTS), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)


def render(part: str, **values: Any) -> Markup:
    """Return a part of the page; strings are escaped, and what this function returned goes in as it is."""
    return Markup(_PAGES.get_template(part).render(values))


def whole_page(title: str, about: str, body: Markup) -> str:
    """Return the page; `about` stands under its title."""
    return render("page", title=title, about=about, body=body, css=Markup(CSS), policy=Markup(POLICY))
