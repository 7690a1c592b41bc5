"""The routes of channels: publish, listen, and see what is listened to."""

from typing import Annotated

import msgspec
from msgspec import Meta

from node.channels import ChannelDesk
from node.control.api import Api, Events, Request
from shoal import channels as shapes

_Topic = Annotated[str, Meta(min_length=1, max_length=256)]


class _PublishBody(msgspec.Struct):
    """`shoal.channels.Publish` with its bounds; the body's own limit bounds the data."""

    topic: _Topic
    data: bytes


class _SubscribeBody(msgspec.Struct):
    """`shoal.channels.Subscribe` with its bounds."""

    topic: _Topic
    last: Annotated[int, Meta(ge=0, le=4096)] | None = None
    since_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    authors: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(max_length=256)
    ] = []


class ChannelRoutes:
    """The handlers; each is one route."""

    def __init__(self, desk: ChannelDesk) -> None:
        self._desk = desk

    async def index(self, _: Request) -> list[shapes.Channel]:
        """List topics."""
        return self._desk.views()

    async def publish(self, request: Request) -> shapes.Published:
        """Say something."""
        body = request.read(_PublishBody)
        return await self._desk.publish(body.topic, body.data)

    async def subscribe(self, request: Request) -> Events:
        """Listen; what is wrong with the request is said before the stream begins."""
        body = request.read(_SubscribeBody)
        wanted = shapes.Subscribe(body.topic, body.last, body.since_s, body.authors)
        return Events(self._desk.messages(wanted, self._desk.check(wanted)))


def routes(api: Api, desk: ChannelDesk) -> None:
    """Declare the routes."""
    it, root = ChannelRoutes(desk), "/v1/channels"
    api.add("GET", root, it.index, summary="Topics listened to", reply=list[shapes.Channel])
    api.add(
        "POST",
        f"{root}/publish",
        it.publish,
        summary="Publish on a topic",
        body=_PublishBody,
        reply=shapes.Published,
    )
    api.add(
        "POST",
        f"{root}/subscribe",
        it.subscribe,
        summary='Listen to a topic; the event "ready" comes first',
        body=_SubscribeBody,
        reply=shapes.Message,
        events=True,
    )
