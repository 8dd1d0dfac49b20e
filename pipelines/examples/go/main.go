// Hello greets whom it is told to greet.
package main

import (
	"fmt"
	"os"
)

func greet(names []string) string {
	if len(names) == 0 {
		return "Hello, world!"
	}
	return fmt.Sprintf("Hello, %s!", names[0])
}

func main() {
	fmt.Println(greet(os.Args[1:]))
}
