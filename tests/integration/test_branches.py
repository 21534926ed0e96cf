"""Conversations as trees: answers made anew, questions asked in other words, branches shown and copied."""

import asyncio
from contextlib import aclosing
from uuid import UUID

import asyncpg
import pytest

from internal.entities.conversations import Conversation, ConversationChanges, Delta, Done, Message, MessageStatus
from internal.entities.ids import new_id
from internal.services.drafts import Turn
from pkg.apperr import AppError, Code
from tests.fakes.openai_server import Reply
from tests.integration.test_chat import Scene, charged, scene
from tests.servers import Database

__all__ = ["scene"]  # the fixture


async def shown(scene: Scene, conversation: Conversation) -> list[Message]:
    return await scene.conversations.messages(scene.ctx, conversation.id, limit=50, after=None)


async def texts(scene: Scene, conversation: Conversation) -> list[str]:
    return [message.content for message in await shown(scene, conversation)]


async def ended(scene: Scene, turn: Turn, text: str) -> Message:
    scene.fake.replies.append(Reply(text=text))
    async with aclosing(scene.chat.stream(scene.ctx, turn)) as events:
        async for event in events:
            if isinstance(event, Done):
                return event.message
    raise AssertionError("no message")


async def told(scene: Scene, conversation: Conversation, question: str, text: str) -> Message:
    return await ended(scene, await scene.chat.begin(scene.ctx, conversation.id, question), text)


async def show(scene: Scene, conversation: Conversation, message_id: UUID) -> None:
    changes = ConversationChanges(current_message_id=message_id)
    await scene.conversations.update(scene.ctx, conversation.id, changes)


async def test_another_answer_stands_beside_the_first_and_is_shown(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    first = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    [question, _] = await shown(scene, talk)
    for named in (first.id, question.id):
        turn = await scene.chat.begin_again(scene.ctx, talk.id, named)
        await ended(scene, turn, "A month [1].")
    asked, answer = await shown(scene, talk)
    assert (asked.id, asked.parent_id, asked.siblings) == (question.id, None, [question.id])
    assert answer.content == "A month [1]."
    assert answer.parent_id == question.id
    assert answer.siblings[0] == first.id
    assert answer.siblings[2] == answer.id
    assert len(scene.fake.chats[-1].body["messages"]) == 2  # the other answers are no part of what was said before


async def test_another_wording_leaves_the_old_branch_as_it_was(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    await told(scene, talk, "How long do refunds take?", "30 days [1].")
    await told(scene, talk, "What about the warranty?", "Two years [2].")
    before = await shown(scene, talk)
    turn = await scene.chat.begin_edited(scene.ctx, talk.id, before[0].id, "Who pays for shipping?")
    await ended(scene, turn, "The customer [1].")
    assert await texts(scene, talk) == ["Who pays for shipping?", "The customer [1]."]
    await show(scene, talk, before[0].id)
    old = await shown(scene, talk)
    assert [message.id for message in old] == [message.id for message in before]
    assert old[0].siblings == [before[0].id, turn.question_id]
    await told(scene, talk, "Does it cover the screen?", "Yes [2].")
    said = [message["content"] for message in scene.fake.chats[-1].body["messages"]]
    assert not any("shipping?" in text for text in said)
    assert any("What about the warranty?" in text for text in said)


async def test_a_question_may_follow_any_message(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    first = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    await told(scene, talk, "What about the warranty?", "Two years [2].")
    turn = await scene.chat.begin(scene.ctx, talk.id, "And shipping?", parent_id=first.id)
    await ended(scene, turn, "Not refunded [1].")
    assert (await texts(scene, talk))[2:] == ["And shipping?", "Not refunded [1]."]


async def test_a_branch_is_a_copy_that_costs_nothing(scene: Scene, module_database: Database) -> None:
    talk = await scene.conversations.add(scene.ctx)
    first = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    await told(scene, talk, "What about the warranty?", "Two years [2].")
    copy = await scene.conversations.branch(scene.ctx, talk.id, first.id)
    assert copy.title == "How long do refunds take? (branch)"
    copied, known = await shown(scene, copy), await shown(scene, talk)
    assert [(item.content, item.created_at, item.citations) for item in copied] == [
        (item.content, item.created_at, item.citations) for item in known[:2]
    ]
    assert copied[1].parent_id == copied[0].id
    assert {item.usage.prompt_tokens for item in copied} == {0}
    assert not {item.id for item in copied} & {item.id for item in known}
    assert await charged(module_database, copy) == []
    await told(scene, copy, "And shipping?", "Not refunded [1].")
    assert len(await shown(scene, talk)) == 4
    await scene.conversations.remove(scene.ctx, talk.id)
    assert len(await shown(scene, copy)) == 4
    assert (await scene.conversations.branch(scene.ctx, copy.id, copied[0].id)).title == copy.title


async def test_two_questions_at_once_follow_each_other(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    one = await scene.chat.begin(scene.ctx, talk.id, "How long do refunds take?")
    two = await scene.chat.begin(scene.ctx, talk.id, "What does the warranty cover?")
    await ended(scene, two, "The screen [1].")
    await ended(scene, one, "30 days [1].")
    assert await texts(scene, talk) == [
        "How long do refunds take?",
        "30 days [1].",
        "What does the warranty cover?",
        "The screen [1].",
    ]


async def test_many_at_once_lose_nothing(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    asked = [f"How long does refund number {number} take?" for number in range(8)]
    await asyncio.gather(*(scene.chat.reply(scene.ctx, talk.id, question) for question in asked))
    found = await shown(scene, talk)
    assert sorted(message.content for message in found if message.role == "user") == asked
    assert len(found) == 16


async def test_pages_of_a_path_go_on_where_they_ended(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    for number in range(3):
        await told(scene, talk, f"How long does refund {number} take?", "30 days [1].")
    whole, after, found = await shown(scene, talk), None, []
    while page := await scene.conversations.messages(scene.ctx, talk.id, limit=4, after=after):
        found += page
        after = page[-1].created_at, page[-1].id
    assert found == whole


async def test_half_an_answer_does_not_take_the_place_of_a_whole_one(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    first = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    scene.fake.replies.append(Reply(pieces=["Some ", "words"], break_after=1))
    turn = await scene.chat.begin_again(scene.ctx, talk.id, first.id)
    with pytest.raises(AppError):
        async for _ in scene.chat.stream(scene.ctx, turn):
            pass
    answer = (await shown(scene, talk))[-1]
    assert answer.id == first.id
    assert len(answer.siblings) == 2
    await show(scene, talk, answer.siblings[1])
    assert (await shown(scene, talk))[-1].status is MessageStatus.FAILED
    await show(scene, talk, turn.question_id)
    assert (await shown(scene, talk))[-1].id == first.id


async def test_an_answer_does_not_fetch_back_who_went_to_another_branch(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    first = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    turn = await scene.chat.begin_edited(scene.ctx, talk.id, first.parent_id or new_id(), "Who pays for shipping?")
    await show(scene, talk, first.id)
    await ended(scene, turn, "The customer [1].")
    assert (await shown(scene, talk))[-1].id == first.id


async def test_an_answer_made_anew_while_the_first_is_written(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    one = await scene.chat.begin(scene.ctx, talk.id, "How long do refunds take?")
    two = await scene.chat.begin_again(scene.ctx, talk.id, one.question_id)
    await ended(scene, one, "30 days [1].")
    last = await ended(scene, two, "A month [1].")
    answer = (await shown(scene, talk))[-1]
    assert (answer.id, len(answer.siblings)) == (last.id, 2)


async def test_a_question_whose_server_died_is_shown_without_an_answer_and_can_be_answered(scene: Scene) -> None:
    talk = await scene.conversations.add(scene.ctx)
    turn = await scene.chat.begin(scene.ctx, talk.id, "How long do refunds take?")
    assert await texts(scene, talk) == ["How long do refunds take?"]
    again = await scene.chat.begin_again(scene.ctx, talk.id, turn.question_id)
    await ended(scene, again, "30 days [1].")
    assert await texts(scene, talk) == ["How long do refunds take?", "30 days [1]."]


async def test_a_conversation_that_is_removed_meanwhile_ends_the_answer_made_anew(
    scene: Scene, module_database: Database
) -> None:
    talk = await scene.conversations.add(scene.ctx)
    first = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    turn = await scene.chat.begin_again(scene.ctx, talk.id, first.id)
    await scene.conversations.remove(scene.ctx, talk.id)
    with pytest.raises(AppError) as caught:
        async for event in scene.chat.stream(scene.ctx, turn):
            assert not isinstance(event, Done) or isinstance(event, Delta)
    assert caught.value.code is Code.CONVERSATION_NOT_FOUND
    assert len(await charged(module_database, talk)) == 2


async def test_what_is_not_there_is_answered_alike_and_what_does_not_fit_is_told(scene: Scene) -> None:
    talk, other = await scene.conversations.add(scene.ctx), await scene.conversations.add(scene.ctx)
    mine = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    foreign = await told(scene, other, "How long do refunds take?", "30 days [1].")
    chat, talks = scene.chat, scene.conversations
    for unknown in (foreign.id, new_id()):
        for call in (
            chat.begin_again(scene.ctx, talk.id, unknown),
            chat.begin_edited(scene.ctx, talk.id, unknown, "What?"),
            chat.begin(scene.ctx, talk.id, "What?", parent_id=unknown),
            talks.branch(scene.ctx, talk.id, unknown),
            talks.update(scene.ctx, talk.id, ConversationChanges(current_message_id=unknown)),
        ):
            with pytest.raises(AppError) as caught:
                await call
            assert caught.value.code is Code.MESSAGE_NOT_FOUND
    for call in (
        chat.begin_again(scene.colleague, talk.id, mine.id),
        chat.begin_edited(scene.colleague, talk.id, mine.id, "What?"),
        talks.branch(scene.colleague, talk.id, mine.id),
    ):
        with pytest.raises(AppError) as caught:
            await call
        assert caught.value.code is Code.CONVERSATION_NOT_FOUND
    with pytest.raises(AppError) as caught:
        await chat.begin_edited(scene.ctx, talk.id, mine.id, "What?")
    assert caught.value.code is Code.MESSAGE_NOT_A_QUESTION
    assert len(await shown(scene, talk)) == 2


async def test_a_server_of_the_version_before_appends_to_what_is_shown(scene: Scene, module_database: Database) -> None:
    talk = await scene.conversations.add(scene.ctx)
    answer = await told(scene, talk, "How long do refunds take?", "30 days [1].")
    conn = await asyncpg.connect(module_database.app)
    async with conn.transaction():
        await conn.execute(f"set local app.tenant_id = '{scene.seeded.tenant}'")
        await conn.execute(f"set local app.user_id = '{scene.seeded.owner}'")
        await conn.execute(
            "insert into messages (tenant_id, conversation_id, id, role, content) values ($1, $2, $3, 'user', 'Old?')",
            scene.seeded.tenant,
            talk.id,
            new_id(),
        )
    await conn.close()
    last = (await shown(scene, talk))[-1]
    assert (last.content, last.parent_id) == ("Old?", answer.id)
