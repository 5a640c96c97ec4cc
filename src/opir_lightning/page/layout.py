"""The page itself, in Gradio. The only module that knows Gradio; import it after the environment is set."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from opir_lightning.errors import UserError
from opir_lightning.memory import out_of_memory
from opir_lightning.page.bounds import MOST_KEPT, BoundedUploads, Send, check_room
from opir_lightning.page.visit import Seen, look_at, restore_upload
from opir_lightning.picture_files import FORMATS
from opir_lightning.pictures import UNCERTAINTY_TOP
from opir_lightning.restorer import Restorer

AUTO = "auto"
KEPT = 3600  # seconds that pictures, results and what a visitor looks at are kept
WAITING = 16  # visitors in the queue; beyond, they are told to come back
# The browser itself then refuses every request to elsewhere, whatever the libraries of the page have in mind.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:"
SYSTEM_FONTS = ("system-ui", "sans-serif")


class OwnServerOnly:
    """ASGI middleware: every answer tells the browser to ask no other server for anything."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


def build(restorer: Restorer, *, folder: Path, most_pixels: int, title: str) -> gr.Blocks:
    """The page for a model.

    Args:
        restorer: with the model.
        folder: for results; it has to be Gradio's folder for temporary files, which deletes them after `KEPT`.
        most_pixels: larger pictures are refused.
        title: of the page.
    """
    bar = gr.Progress()

    def restore(upload: str | None, task: str, strength: float, progress: gr.Progress = bar) -> tuple[Any, ...]:
        if upload is None:
            return None, None, None, None, "", None, ""
        try:
            check_room(folder, MOST_KEPT)  # the same upload may be restored again and again
            view = restore_upload(
                restorer,
                Path(upload),
                task=task,
                strength=strength,
                folder=folder,
                most_pixels=most_pixels,
                progress=lambda done, total: progress((done, total), unit="tiles"),
            )
        except (UserError, MemoryError, RuntimeError) as error:
            return None, None, None, None, _told(error), None, ""
        pair = str(view.before), str(view.after)
        return view.seen, pair, str(view.uncertainty), str(view.result), view.words, None, ""

    def look(seen: Seen | None, place: gr.SelectData) -> tuple[Any, str]:
        if seen is None:
            return None, ""
        try:
            return look_at(restorer, seen, *place.index, most_pixels=most_pixels)
        except (UserError, MemoryError, RuntimeError) as error:
            return None, _told(error)

    tasks = [("estimate it", AUTO), *((name.replace("_", " "), name) for name in restorer.tasks)]
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        seen = gr.State(time_to_live=KEPT)
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                upload = gr.File(label="Picture", file_types=list(FORMATS), height=140, elem_id="upload")
                task = gr.Dropdown(tasks, value=AUTO, label="What it suffers from", elem_id="task")
                strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength", elem_id="strength")
                words = gr.Textbox(label="What came out", lines=4, interactive=False, elem_id="words")
                result = gr.DownloadButton("Download in full size", elem_id="result")
            with gr.Column(scale=3):
                pair = gr.ImageSlider(
                    label="Before and after", interactive=False, max_height=640, buttons=["fullscreen"], elem_id="pair"
                )
        with gr.Row():
            with gr.Column(scale=1):
                gr.Markdown(f"How wrong it may be: dark is 0, bright is {UNCERTAINTY_TOP} and more. **Click a pixel.**")
                # Labels and buttons would lie on the picture, where the pixels are to be clicked.
                uncertainty = gr.Image(
                    type="filepath", interactive=False, show_label=False, buttons=[], elem_id="uncertainty"
                )
            with gr.Column(scale=1):
                gr.Markdown("What is done there: positive taps are red, negative ones blue.")
                operator = gr.Image(format="png", interactive=False, show_label=False, buttons=[], elem_id="operator")
                numbers = gr.Textbox(label="In numbers", lines=3, interactive=False, elem_id="numbers")
        shown = [seen, pair, uncertainty, result, words, operator, numbers]
        for event in (upload.upload, upload.clear, task.input, strength.release):
            event(
                restore,
                [upload, task, strength],
                shown,
                # One restoration at a time: it takes all cores, and what memory there is is measured when it starts.
                concurrency_limit=1,
                concurrency_id="restore",
                trigger_mode="always_last",
                show_progress_on=[pair],
                api_visibility="private",
            )
        uncertainty.select(
            look, [seen], [operator, numbers], concurrency_limit=1, concurrency_id="look", api_visibility="private"
        )
    return page.queue(max_size=WAITING)


def _told(error: Exception) -> str:
    """What a visitor is told; anything that is not theirs to mend is raised again, for the log."""
    if isinstance(error, UserError):
        return f"This cannot be restored: {error}"
    if out_of_memory(error):
        return "There is not enough memory for this picture at present; try again later, or a smaller one."
    raise error


def open_page(page: gr.Blocks, *, folder: Path, host: str, port: int, most_bytes: int) -> None:
    """Serve the page in threads of its own.

    Args:
        page: from `build`.
        folder: that it was built for; uploads go there.
        host: address to listen at.
        port: to listen at.
        most_bytes: a larger upload is refused by the server.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=most_bytes,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=gr.themes.Default(font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace")),
            app_kwargs={"middleware": [Middleware(OwnServerOnly), Middleware(BoundedUploads, folder=folder)]},
        )
    except OSError as error:
        raise UserError(
            f"The page cannot be opened at {host}:{port}: the port is in use (choose another with --port), or this "
            "machine has no such address."
        ) from error
