"""LangChain's wrapper of the Gemini API against a server: invoke, stream, batch, structured output, tools, pictures, embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import Literal

from checks import MODEL, URL, is_unit, pdf, picture, run
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI, GoogleGenerativeAIEmbeddings
from pydantic import BaseModel

chat = ChatGoogleGenerativeAI(model=MODEL, base_url=URL, google_api_key="key", temperature=0.0, max_tokens=40, max_retries=1)
ASKED = [SystemMessage("Be brief."), HumanMessage("what is the number after 1?")]


class Answer(BaseModel):
    """An answer."""

    colour: Literal["red", "green"]
    number: int


@tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Weather of a city."""
    return f"rain in {city}"


def invoke() -> None:
    answer = chat.invoke(ASKED)
    used = answer.usage_metadata
    assert answer.text and used["total_tokens"] == used["input_tokens"] + used["output_tokens"] and 0 < used["output_tokens"] <= 40
    assert answer.response_metadata["finish_reason"] in ("STOP", "MAX_TOKENS")


def stream_is_the_answer() -> None:
    chunks = list(chat.stream(ASKED))
    assert "".join(chunk.text for chunk in chunks) == chat.invoke(ASKED).text


def batch() -> None:
    questions = ["what is the number after 1?", "what is the number after 2?", "hello"]
    answers = chat.batch(questions)
    assert [answer.text for answer in answers] == [chat.invoke(question).text for question in questions]


def asynchronous() -> None:
    async def both() -> tuple[str, str]:
        answer, chunks = await asyncio.gather(chat.ainvoke(ASKED), _all(chat.astream(ASKED)))
        return answer.text, "".join(chunk.text for chunk in chunks)

    answer, streamed = asyncio.run(both())
    assert answer == streamed


async def _all(chunks):
    return [chunk async for chunk in chunks]


def chain() -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "what is the number after {number}?")])
    assert isinstance((prompt | chat | StrOutputParser()).invoke({"number": 1}), str)


def conversation() -> None:
    assert chat.invoke([*ASKED, AIMessage("2"), HumanMessage("and after that?")]).text


def structured_output() -> None:
    for method in ("json_schema", "function_calling"):
        answer = (
            chat.model_copy(update={"max_output_tokens": 400})
            .with_structured_output(Answer, method=method)
            .invoke("which colour, and how many?")
        )
        assert isinstance(answer, Answer), method


def tools() -> None:
    answer = chat.bind_tools([weather], tool_choice="any").invoke("Does it rain in Oslo?")
    (call,) = answer.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Oslo", "Rome")
    said = weather.invoke(call)
    assert isinstance(said, ToolMessage)
    assert isinstance(chat.bind_tools([weather]).invoke([HumanMessage("Does it rain in Oslo?"), answer, said]), AIMessage)


def pictures_and_pdf_in_a_message() -> None:
    data = base64.b64encode(picture()).decode()
    text = {"type": "text", "text": "caption"}
    plain = chat.invoke([HumanMessage([text])]).usage_metadata["input_tokens"]
    for part in (
        {"type": "image_url", "image_url": f"data:image/png;base64,{data}"},
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "media", "mime_type": "image/png", "data": data},
        {"type": "media", "mime_type": "application/pdf", "data": base64.b64encode(pdf()).decode()},
    ):
        answer = chat.invoke([HumanMessage([text, part])])
        assert answer.text and answer.usage_metadata["input_tokens"] > plain


def count_tokens() -> None:
    assert chat.get_num_tokens("a big red circle") > 0


def embeddings() -> None:
    embed = GoogleGenerativeAIEmbeddings(model="gemini-embedding-001", base_url=URL, google_api_key="key")
    texts = ["a red circle", "a blue star", "a green square"]
    vectors = embed.embed_documents(texts)
    assert len(vectors) == 3 and all(map(is_unit, vectors)) and is_unit(embed.embed_query("a red circle"))


run(
    *(invoke, stream_is_the_answer, batch, asynchronous, chain, conversation, structured_output, tools, pictures_and_pdf_in_a_message),
    *(count_tokens, embeddings),
)
