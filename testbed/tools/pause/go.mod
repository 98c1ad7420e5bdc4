// Pins a program that the test bed runs. Nothing here is linked into Vendue.
module vendue.dev/testbed/tools/pause

go 1.26.0
