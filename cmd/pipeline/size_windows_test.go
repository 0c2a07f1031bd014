package main

import "errors"

func limitedCommand([]string) error { return errors.New("Windows knows no such limit") }
