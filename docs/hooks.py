"""MkDocs hook: notebooks become pages. Cells, code and stored outputs are copied as they are."""

import json
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace each notebook by a Markdown page under the same name."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, uri, content=as_markdown(file.content_string)))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let the navigation name the notebooks themselves."""
    config.nav = json.loads(json.dumps(config.nav).replace(".ipynb", ".md"))
    return config


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to notebooks lead to their pages."""
    return markdown.replace(".ipynb)", ".md)")


def on_page_content(html: str, **_: object) -> str:
    """Link "as in `name`" on the API page to the description of that name."""

    def link(found: re.Match[str]) -> str:
        target = f"scalelab.api.{found[2]}"
        code = f"<code>{found[2]}</code>"
        has_target = f'id="{target}"' in html
        return found[1] + (f'<a href="#{target}">{code}</a>' if has_target else code)

    return re.sub(r"(\b(?:[Aa]s in|and|from) )<code>(\w+)</code>", link, html)


def as_markdown(notebook: str) -> str:
    """Return a notebook as Markdown: text, code, and the outputs that it stores."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![picture](data:image/png;base64,{data['image/png']})")
            else:
                plain = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{plain.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
