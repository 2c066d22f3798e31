"""A cloud teacher behind a WAN link and a gateway: sudo edgecompress emulate
topologies/edge_cloud.py.
"""

from mininet.topo import Topo


class EdgeCloud(Topo):
    """teacher - cloud - (WAN: 50 Mbit/s, 30 ms) - gateway - student with half a core."""

    def build(self) -> None:
        """Two hosts, two switches."""
        self.addHost("teacher", role="teacher", model="resnet20")
        self.addHost("student", role="student", model="lenet5", cpu=0.5)
        # mn needs a dpid for names other than s1, s2, ...
        self.addSwitch("cloud", dpid="1")
        self.addSwitch("gateway", dpid="2")
        self.addLink("teacher", "cloud", bw=1000)
        self.addLink("cloud", "gateway", bw=50, delay="30ms")
        self.addLink("gateway", "student", bw=100, delay="1ms")


topos = {"edge_cloud": EdgeCloud}
