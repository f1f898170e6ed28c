// The projection `balances` as a program: events on stdin, changes to rows on stdout.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

// Input is a batch of events, in order.
type Input struct {
	Events []struct {
		Type    string `json:"type"`
		Subject string `json:"subject"` // the stream: `account-1`
		Data    struct {
			Owner  string `json:"owner"`
			Amount int64  `json:"amount"`
		} `json:"data"`
	} `json:"events"`
}

// Change is one change to one row: a whole row put, numbers added to its columns, or no row any more.
type Change struct {
	Model  string           `json:"model"`
	Key    string           `json:"key"`
	Put    map[string]any   `json:"put,omitempty"`
	Add    map[string]int64 `json:"add,omitempty"`
	Delete bool             `json:"delete,omitempty"`
}

// Answer has the changes in the order in which they are made.
type Answer struct {
	Rows    []Change `json:"rows"`
	Failure *Failure `json:"failure,omitempty"`
}

// Failure says which event can't be applied; the changes of those before it are kept.
type Failure struct {
	Index   int    `json:"index"`
	Message string `json:"message"`
}

func main() {
	var input Input
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		fmt.Fprintln(os.Stderr, "the input can't be read:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(project(input)); err != nil {
		fmt.Fprintln(os.Stderr, "the answer can't be written:", err)
		os.Exit(1)
	}
}

func project(input Input) Answer {
	answer := Answer{Rows: []Change{}}
	for index, event := range input.Events {
		change := Change{Model: "balances", Key: event.Subject[len("account-"):]}
		switch event.Type {
		case "Opened":
			change.Put = map[string]any{"owner": event.Data.Owner, "balance": 0}
		case "Deposited":
			change.Add = map[string]int64{"balance": event.Data.Amount}
		case "Withdrawn":
			change.Add = map[string]int64{"balance": -event.Data.Amount}
		case "Closed":
			change.Delete = true
		default:
			answer.Failure = &Failure{index, "unheard of: " + event.Type}
			return answer
		}
		answer.Rows = append(answer.Rows, change)
	}
	return answer
}
