package main

import "testing"

func TestGreet(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{nil, "Hello, world!"},
		{[]string{"yard"}, "Hello, yard!"},
	} {
		if got := greet(c.names); got != c.want {
			t.Errorf("greet(%v) = %q, want %q", c.names, got, c.want)
		}
	}
}
