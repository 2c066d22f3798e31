"""A teacher and a student on one link: sudo edgecompress emulate topologies/two_host.py (or: mn
--custom FILE --topo two_host).
"""

from mininet.topo import Topo


class TwoHost(Topo):
    """teacher - s1 - student, 20 Mbit/s and 5 ms in each direction on the link of the student."""

    def build(self) -> None:
        """Two hosts and a switch."""
        self.addHost("teacher", role="teacher", model="resnet20")
        self.addHost("student", role="student", model="lenet5")
        self.addSwitch("s1")
        self.addLink("teacher", "s1", bw=100)
        self.addLink("s1", "student", bw=20, delay="5ms")


topos = {"two_host": TwoHost}
