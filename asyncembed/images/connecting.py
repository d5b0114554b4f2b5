"""A network of addresses that were checked, for httpcore.

Imported only when a URL is fetched, as httpcore is.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from asyncembed.http import httpcore

NEXT_ADDRESS_SECONDS = 3.0
"""After which the next address of a host is tried, where there is one."""


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to a host at an address that `resolve` gives for it.

    The name is looked up once, and the address is what is connected to. Everything above (pool, TLS, Host header) goes
    by the name, so that two hosts of one address have nothing in common.
    """

    def __init__(self, resolve: Callable[[str, int], Awaitable[Sequence[str]]]) -> None:
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore. Also raises what `resolve` raises."""
        *earlier, last = await self._resolve(host, port)
        for address in earlier:
            try:
                return await self._network.connect_tcp(
                    address, port, NEXT_ADDRESS_SECONDS, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)
