"""Twisted's own echo server, on its epoll reactor, with TCP_NODELAY."""

import resource
import sys

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import reactor  # noqa: E402  The reactor is chosen before it is imported.
from twisted.internet.interfaces import IHalfCloseableProtocol  # noqa: E402
from twisted.internet.protocol import Factory, Protocol  # noqa: E402
from zope.interface import implementer  # noqa: E402

BACKLOG = 1024


@implementer(IHalfCloseableProtocol)
class Echo(Protocol):
    def connectionMade(self):
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data):
        self.transport.write(data)

    # Without these two the end of what comes in would drop what is still to go out.
    def readConnectionLost(self):
        self.transport.loseConnection()

    def writeConnectionLost(self):
        pass


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
reactor.listenTCP(int(sys.argv[1]), Factory.forProtocol(Echo), backlog=BACKLOG, interface="127.0.0.1")
reactor.run()
