"""/api/v1/conversations/{id}/export: a conversation as a file to keep."""

from typing import Annotated, Any

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream

from internal.handlers.auth import access
from internal.handlers.conversations import conversation_of
from internal.handlers.downloads import disposition
from internal.handlers.paging import Id
from internal.handlers.schema import ExportOperation
from internal.services.conversations import ConversationService
from internal.services.exports import Format, export
from pkg.ctxutil import Context, Role

Form = Annotated[Format, QueryParameter(name="format", description="Markdown of what is shown, or JSON of all.")]


@get(
    "/api/v1/conversations/{conversation_id:str}/export",
    opt=access(Role.VIEWER),
    operation_class=ExportOperation,
)
async def export_conversation(
    ctx: NamedDependency[Context],
    conversations: NamedDependency[ConversationService],
    conversation_id: Id,
    form: Form = "markdown",
) -> Response[Any]:
    """A file: what is shown as Markdown with citations as footnotes, or all branches as JSON."""
    made = await export(conversations, ctx, conversation_of(conversation_id), form)
    headers = {
        "Content-Disposition": disposition(made.filename),
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-store",
    }
    return Stream(made.pieces, media_type=made.media_type, headers=headers)
