"""What carries packets between the tester and the stack: the codec, namespaces, TUN, veth, captures.

The only package that needs privileges, and the only one that knows scapy.
"""
