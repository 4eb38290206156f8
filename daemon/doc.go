// Package daemon puts the parts of a role together; it is the parts list.
// Only here do drivers have names.
package daemon
