"""Reading a content: parse, recognise, cut, embed in batches under an unpublished generation, publish.

Each batch is committed under the task's fence, so a rerun continues after the last one and a worker that lost its
lease writes nothing more. Ids of chunks follow from their hashes: two workers that build the same generation write
the same rows.
"""

import asyncio
import hashlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import numpy as np

from internal.entities.conversations import Usage
from internal.entities.documents import Chunk, Content, Generation
from internal.entities.events import DocumentReady
from internal.entities.ocr import OcrPage
from internal.entities.parsed import Block, Box, Location, Parsed
from internal.entities.processing import Processing, ProcessingState
from internal.entities.search import ChunkTerms
from internal.entities.tasks import Lease
from internal.entities.usage import NewUsage, Purpose
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import BlobStore
from internal.providers.ocr import Ocr
from internal.repositories.broadcasts import Megaphone
from internal.repositories.store import Store, Tx
from internal.repositories.vectors import Known
from internal.services import chunking
from internal.services.embedder import Embedder
from internal.services.places import join
from internal.services.processing import in_nobodys_name, mirrored, processing_of, rereading, shadowing
from internal.services.purge import purging, remove_retired
from internal.services.sweep import SweepService, file_missing
from internal.services.terms import TermAnalyser
from pkg import failpoints, logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

SKIPPED = {"skipped": "the document was deleted, or a later version answers already"}

BATCH = 64
"""Chunks a transaction: a crash repeats at most so many, and readers of the index wait little."""

PARSED_SHARE = 0.05
READ_SHARE = 0.3
WRITE_SHARE = 0.97
FEWEST_LETTERS = 3
"""Less on a whole picture is an outline taken for a letter; as a passage it would be near every short query."""
SURE = 0.5
"""Lines that the text reader is less sure of than this are noise more often than text."""
FIRST_IDEOGRAPH = 0x2E80


class Built(NamedTuple):
    """What reading has given: how many passages, and what the document's page shows of the file."""

    chunks: int
    metadata: dict[str, Any]


class Passage(msgspec.Struct, frozen=True):
    """A chunk and what of it is embedded and indexed: its text under its title and headings."""

    chunk: Chunk
    searched: str


class IngestService:
    """Turns an uploaded content into passages that searches find."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        sandbox: Sandbox,
        ocr: Ocr,
        embedder: Embedder,
        megaphone: Megaphone,
        sweep: SweepService,
        *,
        workdir: Path,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._sandbox = sandbox
        self._ocr = ocr
        self._embedder = embedder
        self._megaphone = megaphone
        self._sweep = sweep
        self._workdir = workdir
        self._log = logger.get("ingest")

    async def ingest_content(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `ingest_content`. Answers `{"chunks"}`, or why there was nothing to do."""
        content = await self._content(ctx, lease)
        if content is None:
            return SKIPPED
        # What an earlier model or version left behind, also where the job that replaced it was cut short.
        await remove_retired(self._store, ctx, lease, content.id)
        processing, generation = await self._begin(ctx, lease, content)
        metadata = content.metadata
        if generation.status == "building":
            purpose = Purpose.REPROCESSING if in_nobodys_name(ctx) else Purpose.EMBEDDING
            built = await self.read(ctx, lease, content, generation, processing, purpose)
            generation = msgspec.structs.replace(generation, chunk_count=built.chunks)
            metadata = built.metadata
        shown = await self._publish(ctx, lease, generation, metadata)
        return SKIPPED if shown is None else {"chunks": shown.chunk_count}

    async def read(
        self,
        ctx: Context,
        lease: Lease,
        content: Content,
        generation: Generation,
        processing: Processing,
        purpose: Purpose,
    ) -> Built:
        """Fills a generation that is being built. Raises what the parser, the models and the store raise."""
        parsed = await self._parse(ctx, lease, content)
        passages = await self._cut(ctx, content, generation, parsed, processing)
        if not passages and content.source_type != "photo":
            raise AppError(Code.FILE_NO_TEXT, "No text was found in this file, nor in its pictures.")
        await self._write(ctx, lease, content, generation, passages, purpose)
        return Built(len(passages), _metadata(parsed))

    async def _content(self, ctx: Context, lease: Lease) -> Content | None:
        if lease.task.content_id is None:
            raise AppError(Code.INTERNAL, "The task names no content.")
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            wanted = (await tx.tasks.payload(lease.task.id)).get("space_id", self._embedder.space.id)
            if wanted != self._embedder.space.id:
                raise AppError(
                    Code.MODEL_UNAVAILABLE, "The task waits for a worker with the new embedding model.", retry_after=5
                )
            if await tx.versions.is_overtaken(lease.task.content_id):
                return None
            return await tx.contents.find(lease.task.content_id)

    async def _begin(self, ctx: Context, lease: Lease, content: Content) -> tuple[Processing, Generation]:
        """The generation to fill; of one that is published already only this task's document is to be shown.

        Raises MODEL_UNAVAILABLE when the current version is one that this worker doesn't know.
        """
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            processing = processing_of((await tx.processing.state()).current)
            generation = await tx.generations.ensure(content.id, processing.version, self._embedder.space.id)
            if generation.status == "building":
                await tx.tasks.progress(lease, "reading", 0.02)
        await self._megaphone.task_moved(ctx, lease)
        return processing, generation

    async def _parse(self, ctx: Context, lease: Lease, content: Content) -> Parsed:
        """Parses the object in a child process and puts in what is recognised on its pictures."""
        with tempfile.TemporaryDirectory(prefix="ingest-", dir=self._workdir) as folder:
            path = Path(folder) / "source"
            try:
                await self._blobs.fetch(content.blob_key, path)
            except FileNotFoundError:
                await self._sweep.report_missing(ctx, lease, content.id, content.blob_key)
                raise file_missing() from None
            work = Path(folder) / "work"
            work.mkdir()
            parsed = await self._sandbox.parse(path, media_type=content.media_type, workdir=work)
            await failpoints.hit("ingest.after_parse")
            if not parsed.page_images:
                return parsed
            recognised: dict[int, list[Block]] = {}
            for done, image in enumerate(parsed.page_images):
                share = PARSED_SHARE + (READ_SHARE - PARSED_SHARE) * done / len(parsed.page_images)
                await self._progress(ctx, lease, "recognising", share)
                page = await self._ocr.read(work / image.path)
                recognised.setdefault(image.page, []).extend(recognise(page, number=image.page))
            return parsed.with_pages(recognised)

    async def _cut(
        self, ctx: Context, content: Content, generation: Generation, parsed: Parsed, processing: Processing
    ) -> list[Passage]:
        """Passages with their identity: (content hash, version, ordinal, text) as C7 wants."""
        units = chunking.units(parsed)
        counts = await self._embedder.count_tokens(ctx, [unit.text for unit in units]) if units else []
        pieces = chunking.assemble(
            units,
            counts,
            title=parsed.metadata.get("title"),
            target_tokens=processing.target_tokens,
            overlap_tokens=processing.overlap_tokens,
        )
        return [passage_of(content, generation, piece) for piece in pieces]

    async def _write(
        self,
        ctx: Context,
        lease: Lease,
        content: Content,
        generation: Generation,
        passages: list[Passage],
        purpose: Purpose,
    ) -> None:
        """Embeds and commits what isn't there yet, batch by batch; of a batch what the model gave, if it went away."""
        async with self._store.tenant(ctx) as tx:
            written = await tx.chunks.hashes(generation.id)
        missing = [passage for passage in passages if passage.chunk.hash not in written]
        done = len(passages) - len(missing)
        while missing:
            share = READ_SHARE + (WRITE_SHARE - READ_SHARE) * done / len(passages)
            known, usage = await self._vectors(ctx, lease, missing[:BATCH], share)
            batch = [passage for passage in missing[:BATCH] if passage.chunk.text_hash in known]
            missing = [passage for passage in missing[:BATCH] if passage.chunk.text_hash not in known] + missing[BATCH:]
            await failpoints.hit("ingest.after_embed")
            terms = await asyncio.to_thread(self._terms, ctx, batch)
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                if usage is not None:
                    model = self._embedder.space.model
                    entry = NewUsage(purpose=purpose, model=model, source_id=lease.task.id, usage=usage)
                    await tx.usage.add(entry)
                if await tx.generations.status(generation.id) != "building":
                    return  # another task on the same content was faster, or a later version is
                added = await tx.chunks.add(content.id, generation.id, [passage.chunk for passage in batch])
                # Another worker may have written some of these; its transaction wrote all that belongs to them.
                fresh = [place for place, passage in enumerate(batch) if passage.chunk.id in added]
                ids = [batch[place].chunk.id for place in fresh]
                found = [known[batch[place].chunk.text_hash] for place in fresh]
                vectors = np.array([each.vector for each in found]).reshape(-1, self._embedder.space.dim)
                await tx.vectors.add(self._embedder.space, generation.id, content.source_type, ids, vectors)
                if self._embedder.coded:
                    await tx.token_codes.add(ids, [each.codes for each in found])
                await tx.lexicon.add(generation.id, [terms[place] for place in fresh])
            done += len(batch)
            await failpoints.hit("ingest.after_batch")

    def _terms(self, ctx: Context, batch: list[Passage]) -> list[ChunkTerms]:
        """Runs in a thread; an analyser belongs to one, and making one costs microseconds."""
        analyser = TermAnalyser()
        return [analyser.passage(ctx.tenant_id, passage.chunk.id, passage.searched) for passage in batch]

    async def _vectors(
        self, ctx: Context, lease: Lease, batch: list[Passage], share: float
    ) -> tuple[dict[bytes, Known], Usage | None]:
        """By hash of text, and what it took: nothing where this tenant had embedded all of it before.

        At least one is there, and all of them unless the model went away midway. `share` is done so far.
        """
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.progress(lease, "embedding", share)
            hashes = [passage.chunk.text_hash for passage in batch]
            known = await tx.vectors.reuse(self._embedder.space, hashes, coded=self._embedder.coded)
        await self._megaphone.task_moved(ctx, lease)
        fresh = {passage.chunk.text_hash: passage.searched for passage in batch if passage.chunk.text_hash not in known}
        usage = None
        if fresh:
            computed = await self._embedder.embed_batch(ctx, list(fresh.values()), partly=True)
            codes = computed.codes or [b""] * len(computed.vectors)
            made = (Known(*each) for each in zip(computed.vectors, codes, strict=True))
            known = {**known, **dict(zip(fresh, made, strict=False))}
            usage = computed.usage
        return known, usage

    async def _publish(
        self, ctx: Context, lease: Lease, built: Generation, metadata: dict[str, Any]
    ) -> Generation | None:
        """One short transaction makes all of it visible, once, whoever built it; answers what is visible then.

        None when nobody waits for it any more: the document was deleted, or answers from a later version.
        """
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.lexicon.touch()  # a removal of what was read waits here, or is over
            content = await tx.contents.hold(built.content_id)
            status = await tx.generations.status(built.id)
            if content is None or status is None or status == "retired":
                return None
            if status != "published":
                if await tx.versions.is_overtaken(content.id):
                    await tx.generations.retire(built.id)
                    await tx.tasks.add(purging(content.id))
                    return None
                state = await tx.processing.state()
                answering = await tx.generations.answering(content.id)
                if answering and built.version != state.current and answering.space_id == built.space_id:
                    # Another version came meanwhile: who waits for the content is shown what answers for it.
                    if status == "building":
                        await tx.generations.retire(built.id)
                    built = answering
                else:
                    await _take_over(tx, ctx, lease, built, answering, state)
                    await tx.contents.publish(content.id, built.id, metadata)
                    await tx.generations.publish(built.id, built.chunk_count)
            await _show(tx, content.id, built)
            await failpoints.hit("ingest.before_publish")
        await failpoints.hit("ingest.after_publish")
        if status != "published":
            async with self._store.tenant(ctx) as tx:
                await tx.vectors.analyze(self._embedder.space)
            if content.generation_id is not None:
                await remove_retired(self._store, ctx, lease, content.id)
        return built

    async def _progress(self, ctx: Context, lease: Lease, stage: str, share: float) -> None:
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.progress(lease, stage, share)
        await self._megaphone.task_moved(ctx, lease)


async def _take_over(
    tx: Tx, ctx: Context, lease: Lease, built: Generation, answering: Generation | None, state: ProcessingState
) -> None:
    """Puts a reading in the place of the one that answers, if one does.

    What another version than the current one read, for the first time in its space, is read again.
    """
    olds = [] if answering is None else [answering.id]
    if built.version != state.current:
        await tx.tasks.add_hidden(rereading(built.content_id))
    elif state.candidate is not None and not in_nobodys_name(ctx) and mirrored(lease.task.id, state.share):
        await tx.tasks.add_hidden(shadowing(built.content_id, state.candidate))
    await tx.lexicon.replace(olds, [built.id])
    await tx.generations.replace(olds, state)


async def _show(tx: Tx, content_id: UUID, generation: Generation) -> None:
    """Lets every document of the content be found, and tells of those that couldn't be before."""
    switched = await tx.versions.switch(content_id, generation.id)
    for content in {content for item in switched for content in item.left}:
        await tx.tasks.add(purging(content))
    ready = [item.document_id for item in switched] + await tx.documents.publish(content_id, generation.id)
    for document_id in ready:
        await tx.outbox.add(DocumentReady(document_id=document_id, chunk_count=generation.chunk_count))


def _letters(text: str) -> int:
    """Letters and digits; one of a script that writes words in one or two characters counts twice."""
    return sum(2 if ord(char) >= FIRST_IDEOGRAPH else 1 for char in text if char.isalnum())


def recognise(page: OcrPage, *, number: int) -> list[Block]:
    """The lines of the picture of page `number` as a block, each with its box, in shares of the picture."""
    lines = [line for line in page.lines if line.confidence >= SURE and line.text.strip()]
    if sum(_letters(line.text) for line in lines) < FEWEST_LETTERS:
        return []
    places = [Location(page=number, box=_shares(line.box, page)) for line in lines]
    text, parts = join(("\n", line.text, location) for line, location in zip(lines, places, strict=True))
    return [Block(kind="paragraph", text=text, location=places[0], parts=parts)]


def _shares(box: Box, page: OcrPage) -> Box:
    """A box in pixels as shares of its picture."""
    x0, y0, x1, y1 = box
    return (
        round(x0 / page.width, 4),
        round(y0 / page.height, 4),
        round(x1 / page.width, 4),
        round(y1 / page.height, 4),
    )


def _metadata(parsed: Parsed) -> dict[str, Any]:
    """What the document page shows; a warning tells what couldn't be read."""
    return {**parsed.metadata, **({"warnings": list(parsed.warnings)} if parsed.warnings else {})}


def passage_of(content: Content, generation: Generation, piece: chunking.Chunk) -> Passage:
    """The piece with the identity that it has in this generation, whoever computes it."""
    searched = chunking.embedding_text(piece)
    # The content's id too: its bytes may have been uploaded again before an earlier content's chunks are purged.
    identity = hashlib.sha256(content.id.bytes + content.sha256)
    for part in (generation.version, str(generation.space_id), str(piece.ordinal), piece.text):
        identity.update(hashlib.sha256(part.encode()).digest())
    digest = identity.digest()
    chunk = Chunk(
        id=_chunk_id(generation.id, digest),
        ordinal=piece.ordinal,
        hash=digest,
        text_hash=hashlib.sha256(searched.encode()).digest(),
        text=piece.text,
        tokens=piece.tokens,
        location=piece.location,
        parts=piece.parts,
    )
    return Passage(chunk, searched)


def _chunk_id(generation_id: UUID, digest: bytes) -> UUID:
    """A UUIDv8 of hashed bits: the same chunk of a generation has the same id whoever writes it, and no time in it.

    A time would tell whoever uploads the same bytes that somebody had them before, and since when.
    """
    raw = bytearray(hashlib.sha256(generation_id.bytes + digest).digest()[:16])
    raw[6] = 0x80 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return UUID(bytes=bytes(raw))
