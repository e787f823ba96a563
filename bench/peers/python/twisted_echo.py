"""Twisted's own echo server, on its epoll reactor, with TCP_NODELAY."""

import resource
import sys

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import reactor  # noqa: E402  The reactor is chosen before it is imported.
from twisted.internet.protocol import Factory, Protocol  # noqa: E402

BACKLOG = 1024


class Echo(Protocol):
    def connectionMade(self):
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data):
        self.transport.write(data)


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
reactor.listenTCP(int(sys.argv[1]), Factory.forProtocol(Echo), backlog=BACKLOG, interface="127.0.0.1")
reactor.run()
