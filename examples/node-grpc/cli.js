#!/usr/bin/env node
import { main } from 'tailrace-protocol/cli';
import { connect } from './connection.js';

await main(connect);
