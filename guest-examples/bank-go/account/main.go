// The aggregate `account` as a program: one document on stdin, one on stdout.
package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
)

// Input is what the platform puts in: events to fold into the state, and the command to decide, if there is one.
type Input struct {
	Kind    string  `json:"kind"`
	State   Account `json:"state"` // null before the first fold, which leaves the zero value: an account that is new
	Events  []Event `json:"events"`
	Command Command `json:"command"`
}

// Event is something that happened to the account.
type Event struct {
	Type string `json:"type"`
	Data Data   `json:"data"`
}

// Data is what an event says.
type Data struct {
	Owner  string `json:"owner,omitempty"`
	Amount int64  `json:"amount,omitempty"`
}

// Command is what someone wants. Its data has passed the schema that the manifest names for it.
type Command struct {
	Name string `json:"name"`
	Data Data   `json:"data"`
}

// Account is the state that the platform keeps between two calls, as JSON.
type Account struct {
	Status  string `json:"status"` // "", "open" or "closed"
	Balance int64  `json:"balance"`
}

// Answer to `fold` has a state; to `decide`, events or a refusal.
type Answer struct {
	State   *Account `json:"state,omitempty"`
	Events  []Event  `json:"events,omitempty"`
	Refusal *Refusal `json:"refusal,omitempty"`
}

// Refusal is a "no" that the caller can understand.
type Refusal struct {
	Code    string           `json:"code"`
	Message string           `json:"message"`
	Details map[string]int64 `json:"details,omitempty"`
}

func main() {
	var input Input
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		fmt.Fprintln(os.Stderr, "the input can't be read:", err)
		os.Exit(1)
	}
	account := input.State
	for _, event := range input.Events {
		account.apply(event)
	}
	answer := Answer{State: &account}
	if input.Kind == "decide" {
		answer = account.decide(input.Command)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		fmt.Fprintln(os.Stderr, "the answer can't be written:", err)
		os.Exit(1)
	}
}

func (account *Account) apply(event Event) {
	switch event.Type {
	case "Opened":
		account.Status = "open"
	case "Deposited":
		account.Balance += event.Data.Amount
	case "Withdrawn":
		account.Balance -= event.Data.Amount
	case "Closed":
		account.Status = "closed"
	default:
		panic("unheard of: " + event.Type)
	}
}

func (account *Account) decide(command Command) Answer {
	amount := command.Data.Amount
	switch {
	case command.Name == "open" && account.Status == "open":
		return refuse("already_open", "the account is open already", nil)
	case account.Status == "closed":
		return refuse("closed", "the account is closed", nil)
	case command.Name == "open" && strings.TrimSpace(command.Data.Owner) == "":
		return refuse("owner_missing", "an account needs an owner", nil)
	case command.Name == "open":
		return happened("Opened", command.Data)
	case account.Status == "":
		return refuse("not_open", "the account was never opened", nil)
	case command.Name == "deposit" && amount > math.MaxInt64-account.Balance:
		return refuse("account_full", "the account can't hold that much",
			map[string]int64{"balance": account.Balance, "amount": amount})
	case command.Name == "deposit":
		return happened("Deposited", command.Data)
	case command.Name == "withdraw" && amount > account.Balance:
		short := amount - account.Balance
		return refuse("insufficient_funds", fmt.Sprintf("%d cents short of %d", short, amount),
			map[string]int64{"balance": account.Balance, "amount": amount, "short_by": short})
	case command.Name == "withdraw":
		return happened("Withdrawn", command.Data)
	case command.Name == "close" && account.Balance > 0:
		return refuse("account_not_empty", fmt.Sprintf("the account still holds %d cents", account.Balance),
			map[string]int64{"balance": account.Balance})
	case command.Name == "close":
		return happened("Closed", Data{})
	}
	panic("unheard of: " + command.Name)
}

func happened(kind string, data Data) Answer {
	return Answer{Events: []Event{{kind, data}}}
}

func refuse(code, message string, details map[string]int64) Answer {
	return Answer{Refusal: &Refusal{code, message, details}}
}
