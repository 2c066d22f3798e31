"""One teacher, four students: sudo edgecompress emulate topologies/star.py (or: mn --custom FILE
--topo star).
"""

from mininet.topo import Topo


class Star(Topo):
    """A teacher and four students around one switch; each student has its own link."""

    def build(self) -> None:
        """Five hosts."""
        self.addSwitch("s1")
        self.addHost("teacher", role="teacher", model="resnet20")
        self.addLink("teacher", "s1", bw=100)
        for number, delay in enumerate(("1ms", "5ms", "10ms", "20ms"), start=1):
            self.addHost(f"student{number}", role="student", model="lenet5")
            self.addLink("s1", f"student{number}", bw=20, delay=delay)


topos = {"star": Star}
