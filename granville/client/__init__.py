"""The SDK for programs that run on Trio: connect, submit, stream, cancel, ask for the status.

async with connect() as client:
    result = await client.submit(Request(id=new_id(), text="What is a kernel?"))
    async with client.stream(Request(id=new_id(), text="Go on.")) as answer:
        async for text in answer:
            print(text, end="")
        print(answer.result.usage)
"""

from granville.client.address import new_id
from granville.client.answer import Answer
from granville.client.callback import Mailbox, listen_for_results
from granville.client.connection import Client, Transcript, connect
from granville.wire.messages import ChatMessage, Request, Result

__all__ = [
    "Answer",
    "ChatMessage",
    "Client",
    "Mailbox",
    "Request",
    "Result",
    "Transcript",
    "connect",
    "listen_for_results",
    "new_id",
]
