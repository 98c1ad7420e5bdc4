// Command pause holds namespaces open and reaps orphans that are handed to it as
// process 1. The test bed uses it twice:
//
//	pause        the sandbox container of each Pod; ends on SIGINT or SIGTERM
//	pause -hold  process 1 of each simulated node; ends when its standard input
//	             closes, so a node cannot outlive a test bed that was killed.
//	             A line "keep" on standard input lifts that tie.
package main

import (
	"bufio"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	if len(os.Args) > 1 && os.Args[1] == "-hold" {
		go func() {
			lines := bufio.NewScanner(os.Stdin)
			for lines.Scan() {
				if lines.Text() == "keep" {
					return
				}
			}
			os.Exit(0)
		}()
	}
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}
